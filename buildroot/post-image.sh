#!/usr/bin/env bash
# post-image.sh IMAGES BOARD, called by Buildroot when all is built: makes the disk from its kernel, its GRUB and its target
# directory, by the same script as `just image-dev`.
set -euo pipefail
images=$1 board=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# As fakeroot's copy would be: board/disk changes times, and Buildroot's note to developers is not the image's.
mkdir "$work/root" "$work/grub"
chmod 755 "$work/root"
tar -C "$TARGET_DIR" --exclude=./THIS_IS_NOT_YOUR_ROOT_FILESYSTEM -c . | tar -C "$work/root" -x
# init reads three of depmod's indexes. The target keeps all, from which the next run makes the same.
find "$work/root/lib/modules/" -maxdepth 2 -name 'modules.*' ! -name modules.dep ! -name modules.alias \
  ! -name modules.softdep -delete

for build in "$BUILD_DIR"/grub2-*/build-*; do ln -s "$build/grub-core" "$work/grub/${build##*/build-}"; done
case $board in
  x86_64) kernel=$images/bzImage ;;
  aarch64) kernel=$images/vmlinuz.efi ;;
  *) echo "post-image: no board $board" >&2 && exit 2 ;;
esac
"$(dirname "$0")/../board/disk" "$board" "$work/root" "$kernel" "$work/grub" "$HOST_DIR/bin/pilotlight" "$images"
