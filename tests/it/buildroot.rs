//! The external tree for Buildroot, without Buildroot: what its files name exists, its hashes and kernel fragments are whole,
//! and the scripts that Buildroot calls make the disk out of a target directory as Buildroot leaves it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use pilotlight::wire::gpt::{Header, Table};
use tempfile::TempDir;

use crate::e2e::initramfs;
use crate::peers;

const BOARDS: [&str; 2] = ["x86_64", "aarch64"];
/// The disk of board/README.md: names in the order of their numbers, which the boot script counts by.
const PARTITIONS: [&str; 8] = ["bios", "esp", "state", "slot-a", "slot-b", "recovery", "config", "data"];

fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn defconfig(board: &str) -> String {
    read(&format!("buildroot/configs/pilotlight_{board}_defconfig"))
}

/// What `text`, a file of lines `KEY=value` or `KEY = value`, says about `key`, without quotes.
fn value(text: &str, key: &str) -> String {
    let value = text.lines().find_map(|line| Some(line.strip_prefix(key)?.trim_start().strip_prefix('=')?.trim()));
    value.unwrap_or_else(|| panic!("no {key}")).trim_matches('"').to_owned()
}

#[test]
fn every_file_that_a_defconfig_names_is_there() {
    for board in BOARDS {
        let text = defconfig(board);
        let named: Vec<_> = text.split(['"', ' ', '\n']).filter(|word| word.starts_with("$(BR2_EXTERNAL")).collect();
        assert!(named.len() >= 6, "{board}: {named:?}");
        for name in named {
            let path = root().join(name.replace("$(BR2_EXTERNAL_PILOTLIGHT_PATH)", "buildroot"));
            let mode =
                path.metadata().unwrap_or_else(|error| panic!("{}: {error}", path.display())).permissions().mode();
            let runs = mode & 0o111 != 0;
            assert!(runs || path.extension().is_none_or(|kind| kind != "sh"), "{} is no program", path.display());
        }
        assert_eq!(value(&text, "BR2_ROOTFS_POST_SCRIPT_ARGS"), board);
        for name in ["arguments", "linux.config"] {
            assert!(root().join("board").join(board).join(name).is_file(), "{board} has no {name}");
        }
    }
}

#[test]
fn the_skeleton_is_one_that_a_merged_usr_accepts() {
    for directory in ["bin", "lib", "sbin"] {
        assert!(root().join("buildroot/skeleton/usr").join(directory).join(".empty").is_file(), "{directory}");
        assert!(
            !root().join("buildroot/skeleton").join(directory).exists(),
            "{directory} is a link that Buildroot makes"
        );
    }
}

#[test]
fn the_boards_differ_in_their_architecture_alone() {
    let general = |board: &str| {
        let differs = ["BR2_x86_64", "BR2_aarch64", "BR2_TOOLCHAIN_EXTERNAL_BOOTLIN_", "BR2_TARGET_GRUB2_"];
        let differs =
            [&differs[..], &["BR2_LINUX_KERNEL_IMAGE", "BR2_LINUX_KERNEL_BZIMAGE", "BR2_PACKAGE_LINUX_FIRMWARE_"]]
                .concat();
        let lines = defconfig(board).replace(board, "BOARD");
        lines
            .lines()
            .filter(|line| !differs.iter().any(|begin| line.starts_with(begin)))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(general("x86_64"), general("aarch64"));
}

#[test]
fn kernel_fragments_are_well_formed_and_say_nothing_twice() {
    for board in BOARDS {
        let mut seen = BTreeSet::new();
        for path in ["board/common/linux.config".into(), format!("board/{board}/linux.config")] {
            for line in read(&path).lines() {
                let (symbol, value) = match (line.strip_suffix(" is not set"), line.split_once('=')) {
                    (Some(unset), _) => (unset.strip_prefix("# "), "n"),
                    (None, Some((symbol, value))) if !line.starts_with('#') => (Some(symbol), value),
                    (None, _) => {
                        assert!(line.is_empty() || line.starts_with("# "), "{path}: {line}");
                        continue;
                    }
                };
                let symbol = symbol.unwrap_or_else(|| panic!("{path}: {line}"));
                let name = symbol.strip_prefix("CONFIG_").unwrap_or_else(|| panic!("{path}: {line}"));
                let plain =
                    name.bytes().all(|octet| octet.is_ascii_uppercase() || octet.is_ascii_digit() || octet == b'_');
                assert!(plain && !name.is_empty(), "{path}: {line}");
                assert!(matches!(value, "y" | "m" | "n") || value.parse::<u32>().is_ok(), "{path}: {line}");
                assert!(seen.insert(symbol.to_owned()), "{path}: {symbol} a second time");
            }
        }
        assert!(seen.contains("CONFIG_RD_ZSTD"), "the initramfs is packed with zstd");
    }
}

/// The files that a hash file knows, each with a SHA-256.
fn hashed(path: &str) -> BTreeSet<String> {
    let line = |line: &str| {
        let [kind, hash, file] = line.split("  ").collect::<Vec<_>>()[..] else { panic!("{path}: {line}") };
        assert!(kind == "sha256" && hash.len() == 64 && hex::decode(hash).is_ok(), "{path}: {line}");
        file.to_owned()
    };
    read(path).lines().filter(|text| !text.starts_with('#')).map(line).collect()
}

#[test]
fn each_download_of_our_own_has_a_hash() {
    let ipxe = read("buildroot/package/pilotlight-ipxe/pilotlight-ipxe.mk");
    let hashes = hashed("buildroot/package/pilotlight-ipxe/pilotlight-ipxe.hash");
    let tarball = format!("pilotlight-ipxe-{}-git4.tar.gz", value(&ipxe, "PILOTLIGHT_IPXE_VERSION"));
    assert!(hashes.contains(&tarball), "{tarball}");
    for licence in value(&ipxe, "PILOTLIGHT_IPXE_LICENSE_FILES").split(' ') {
        assert!(hashes.contains(licence), "{licence}");
    }
    let rust = value(&read("buildroot/build"), "rust");
    let (linux, programs) = (hashed("buildroot/patches/linux/linux.hash"), hashed("buildroot/rust-bin.hash"));
    for board in BOARDS {
        let kernel = format!("linux-{}.tar.xz", value(&defconfig(board), "BR2_LINUX_KERNEL_CUSTOM_VERSION_VALUE"));
        assert!(linux.contains(&kernel), "{kernel}");
        for name in
            [format!("rust-{rust}-{board}-unknown-linux-gnu"), format!("rust-std-{rust}-{board}-unknown-linux-musl")]
        {
            assert!(programs.contains(&format!("{name}.tar.xz")), "{name}");
        }
    }
}

#[test]
fn the_programs_are_compiled_as_for_image_dev() {
    let manifest = read("Cargo.toml");
    let profile = |name: &str| manifest.split(&format!("[profile.{name}]\n")).nth(1).expect("the profile").to_owned();
    let package = read("buildroot/package/pilotlight/pilotlight.mk");
    let package = package.split("HOST_PILOTLIGHT").next().unwrap();
    for (section, key) in
        [("release", "opt-level"), ("appliance", "lto"), ("appliance", "codegen-units"), ("release", "overflow-checks")]
    {
        let variable = format!("\tCARGO_PROFILE_RELEASE_{}", key.to_uppercase().replace('-', "_"));
        let ours = value(package, &variable).trim_end_matches([' ', '\\']).to_owned();
        assert_eq!(ours, value(&profile(section), key), "{key}");
    }
}

/// Buildroot's output directory as it is when post-build.sh is called, with as little in it as shows what that does.
struct Tree {
    directory: TempDir,
    release: String,
}

/// The file of a module of this machine's kernel `release`.
fn module(release: &str, name: &str) -> Option<PathBuf> {
    let plain = Path::new("/lib/modules").join(release).join("kernel").join(name);
    let packed = plain.with_extension("ko.xz");
    [plain, packed].into_iter().find(|file| file.is_file())
}

impl Tree {
    fn new() -> Option<Self> {
        let tools = [
            ("modprobe", "kmod"),
            ("xz", "xz-utils"),
            ("genimage", "genimage"),
            ("mcopy", "mtools"),
            ("mkfs.vfat", "dosfstools"),
            ("mksquashfs", "squashfs-tools"),
            ("zstd", "zstd"),
            ("cpio", "cpio"),
            ("grub-mkimage", "grub-common"),
        ];
        if !tools.into_iter().all(|(tool, package)| peers::require(tool, package)) {
            return None;
        }
        let modules = fs::read_dir("/lib/modules").into_iter().flatten().flatten().map(|entry| entry.file_name());
        let release = modules
            .filter_map(|name| name.into_string().ok())
            .find(|release| module(release, "drivers/net/dummy.ko").is_some());
        if release.is_none()
            || !Path::new("/usr/lib/grub/x86_64-efi").is_dir()
            || !Path::new("/usr/lib/grub/i386-pc").is_dir()
        {
            peers::say(
                "skipped: no kernel modules or no GRUB (apt-get install linux-image-amd64 grub-pc-bin grub-efi-amd64-bin)",
            );
            assert!(std::env::var_os("PILOTLIGHT_REQUIRE_PEERS").is_none_or(|value| value != "1"));
            return None;
        }
        let tree = Self { directory: tempfile::tempdir().unwrap(), release: release? };
        tree.fill();
        Some(tree)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn file(&self, name: &str, mode: u32) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, name).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn link(&self, to: &str, name: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(to, path).unwrap();
    }

    fn fill(&self) {
        for program in ["init", "usr/bin/pilotlight", "usr/sbin/mke2fs", "usr/sbin/e2fsck"] {
            self.file(&format!("target/{program}"), 0o755);
        }
        for name in ["bin", "sbin", "lib"] {
            self.link(&format!("usr/{name}"), &format!("target/{name}"));
        }
        self.link("/run/pilotlight/net/resolv.conf", "target/etc/resolv.conf");
        // What no image holds: a shell, a tool that came along, the overlay's own explanation, Buildroot's note.
        for stray in
            ["usr/bin/sh", "usr/sbin/tune2fs", "etc/mke2fs.conf", "README.md", "THIS_IS_NOT_YOUR_ROOT_FILESYSTEM"]
        {
            self.file(&format!("target/{stray}"), 0o755);
        }
        for kept in ["etc/pilotlight/flags", "usr/lib/ipxe/undionly.kpxe", "usr/lib/firmware/rtl_nic/rtl8168h-2.fw"] {
            self.file(&format!("target/{kept}"), 0o644);
        }
        // A wanted module with one that it needs, and one that nobody asked for.
        for module in [
            "drivers/net/ethernet/intel/igb/igb.ko",
            "drivers/i2c/algos/i2c-algo-bit.ko",
            "drivers/dca/dca.ko",
            "drivers/net/dummy.ko",
        ] {
            let name = format!("target/usr/lib/modules/{}/kernel/{module}", self.release);
            self.file(&name, 0o644);
            let module = self::module(&self.release, module).expect("the kernel has it");
            fs::write(self.path(&name), initramfs::unpacked(&module).unwrap()).unwrap();
        }
        for text in
            ["linux-6.12.91/COPYING", "e2fsprogs-1.47.3/NOTICE", "pilotlight-0.1.0/LICENSE", "pilotlight-0.1.0/NOTICE"]
        {
            self.file(&format!("build/{text}"), 0o644);
        }
        self.file("build/linux-firmware-20251011/LICENCE.rtl_nic", 0o644);
        self.file("build/linux-firmware-20251011/WHENCE", 0o644);
        for platform in ["i386-pc", "x86_64-efi"] {
            self.link(&format!("/usr/lib/grub/{platform}"), &format!("build/grub2-2.12/build-{platform}/grub-core"));
        }
        self.link(env!("CARGO_BIN_EXE_pilotlight"), "host/bin/pilotlight");
        self.link("/bin/kmod", "host/bin/kmod");
        self.link("../bin/kmod", "host/sbin/depmod");
        self.file("images/bzImage", 0o644);
        for index in ["modules.order", "modules.builtin", "modules.builtin.modinfo"] {
            let name = format!("lib/modules/{}/{index}", self.release);
            fs::copy(Path::new("/").join(&name), self.path(&format!("target/usr/{name}"))).unwrap();
        }
        // Where Buildroot runs depmod itself.
        let depmod =
            Command::new(self.path("host/sbin/depmod")).arg("-b").arg(self.path("target")).arg(&self.release).status();
        assert!(depmod.unwrap().success());
    }

    /// Calls a script as Buildroot does.
    fn call(&self, script: &str, argument: &str, board: &str) -> Output {
        Command::new(root().join("buildroot").join(script))
            .args([self.path(argument).as_os_str(), board.as_ref()])
            .env("TARGET_DIR", self.path("target"))
            .env("BUILD_DIR", self.path("build"))
            .env("HOST_DIR", self.path("host"))
            .env("BINARIES_DIR", self.path("images"))
            .env("SOURCE_DATE_EPOCH", "1700000000")
            .output()
            .unwrap()
    }

    fn must(&self, script: &str, argument: &str) {
        let output = self.call(script, argument, "x86_64");
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// The names in the initramfs that came out.
    fn system(&self) -> BTreeSet<String> {
        let unpacked = self.path("initramfs.cpio");
        let zstd = Command::new("zstd")
            .args(["-q", "-d"])
            .arg(self.path("images/initramfs"))
            .arg("-o")
            .arg(&unpacked)
            .status();
        assert!(zstd.unwrap().success());
        let archive = File::open(unpacked).unwrap();
        let list = Command::new("cpio").args(["--quiet", "-t"]).stdin(archive).output().unwrap();
        assert!(list.status.success());
        String::from_utf8(list.stdout).unwrap().lines().map(str::to_owned).collect()
    }
}

fn partitions(disk: &Path) -> Vec<String> {
    let mut disk = File::open(disk).unwrap();
    let mut sector = [0; 512];
    disk.seek(SeekFrom::Start(512)).unwrap();
    disk.read_exact(&mut sector).unwrap();
    let header = Header::decode(&sector, 1).unwrap();
    let mut entries = vec![0; header.table_octets()];
    disk.seek(SeekFrom::Start(header.entries * 512)).unwrap();
    disk.read_exact(&mut entries).unwrap();
    Table::new(header, entries).unwrap().partitions().into_iter().map(|partition| partition.name).collect()
}

#[test]
fn buildroots_hooks_make_the_disk_of_what_an_image_holds() {
    let Some(tree) = Tree::new() else { return };
    tree.must("post-build.sh", "target");
    tree.must("post-image.sh", "images");
    assert_eq!(partitions(&tree.path("images/pilotlight.img")), PARTITIONS);

    let system = tree.system();
    let modules = format!("usr/lib/modules/{}", tree.release);
    for name in [
        "init".to_owned(),
        "usr/bin/pilotlight".into(),
        "usr/sbin/mke2fs".into(),
        "usr/sbin/e2fsck".into(),
        "lib".into(),
        "data".into(),
        "etc/resolv.conf".into(),
        "etc/pilotlight/flags".into(),
        "usr/lib/ipxe/undionly.kpxe".into(),
        "usr/share/licenses/linux/COPYING".into(),
        "usr/share/licenses/linux-firmware/LICENCE.rtl_nic".into(),
        format!("{modules}/modules-load"),
        format!("{modules}/modules.dep"),
        format!("{modules}/kernel/drivers/net/ethernet/intel/igb/igb.ko"),
        format!("{modules}/kernel/drivers/i2c/algos/i2c-algo-bit.ko"),
    ] {
        assert!(system.contains(&name), "{name} is missing in {system:?}");
    }
    for stray in ["usr/bin/sh", "usr/sbin/tune2fs", "etc/mke2fs.conf", "README.md", "THIS_IS_NOT_YOUR_ROOT_FILESYSTEM"]
    {
        assert!(!system.contains(stray), "{stray}");
    }
    assert!(!system.iter().any(|name| name.ends_with("dummy.ko")));

    // The same target makes the same disk, and hooks may run again.
    let first = fs::read(tree.path("images/pilotlight.img")).unwrap();
    tree.must("post-build.sh", "target");
    tree.must("post-image.sh", "images");
    assert!(first == fs::read(tree.path("images/pilotlight.img")).unwrap(), "a second run makes another disk");
}

#[test]
fn a_target_without_its_programs_is_refused() {
    let Some(tree) = Tree::new() else { return };
    fs::remove_file(tree.path("target/usr/sbin/e2fsck")).unwrap();
    let refused = tree.call("post-build.sh", "target", "x86_64");
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no usr/sbin/e2fsck"));
}
