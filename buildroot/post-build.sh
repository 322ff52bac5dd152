#!/usr/bin/env bash
# post-build.sh TARGET BOARD, called by Buildroot when TARGET has everything: leaves in it what the image holds, as
# board/initramfs does: two programs of our own and those that make and check ext4, all static, and no shell.
set -euo pipefail
target=$1
board=$(cd "$(dirname "$0")/../board" && pwd)
release=$(basename "$(echo "$target"/lib/modules/*)")
modules=$target/lib/modules/$release
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Buildroot's host has kmod, and by the name of depmod alone.
ln -s "$HOST_DIR/bin/kmod" "$work/modprobe"
PATH=$work:$PATH "$board/list-modules" "$release" "$target" >"$work/modules"
(cd "$modules" && find . -name '*.ko' -printf '%P\n') | sort | { grep -vxFf "$work/modules" || true; } |
  while read -r name; do rm "$modules/$name"; done
"$HOST_DIR/sbin/depmod" -C /dev/null -b "$target" "$release"
install -m 644 "$board/common/modules-load" "$modules/modules-load"

licences=$target/usr/share/licenses
for package in linux:COPYING e2fsprogs:NOTICE pilotlight:LICENSE pilotlight:NOTICE; do
  for file in "$BUILD_DIR/${package%%:*}"-[0-9]*/"${package##*:}"; do
    install -D -m 644 "$file" "$licences/${package%%:*}/${package##*:}"
  done
done
for file in "$BUILD_DIR"/linux-firmware-[0-9]*/LICEN[CS]E.* "$BUILD_DIR"/linux-firmware-[0-9]*/WHENCE; do
  install -D -m 644 -t "$licences/linux-firmware" "$file"
done

# Whatever else packages bring along is not the image's. Links such as /lib and /bin stay.
(cd "$target" && find . -mindepth 1 ! -type d -printf '%P\n') | { grep -vxE \
  -e 'init|usr/bin/pilotlight|usr/sbin/(mke2fs|e2fsck)' \
  -e 'etc/(resolv\.conf|pilotlight/.*)' \
  -e 'usr/(lib/(modules|firmware|ipxe)|share/licenses)/.*' \
  -e 'bin|sbin|lib|lib64|usr/lib64|THIS_IS_NOT_YOUR_ROOT_FILESYSTEM' || true; } |
  while read -r name; do rm "$target/$name"; done
find "$target" -mindepth 1 -type d -empty -delete
for directory in data dev proc run sys tmp; do install -d "$target/$directory"; done
for file in init usr/bin/pilotlight usr/sbin/mke2fs usr/sbin/e2fsck; do
  if ! [ -x "$target/$file" ]; then echo "post-build: no $file" >&2 && exit 1; fi
done
