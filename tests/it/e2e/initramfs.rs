//! The boot assets: Debian's kernel, and an initramfs whose only program is `pilotlight guest`.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

use crate::peers;

/// What the guest needs of the kernel: its disk, its network, its BMC.
const MODULES: &[&str] = &["virtio_pci", "virtio_net", "virtio_blk", "ipmi_si", "ipmi_devintf"];

const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin PILOTLIGHT_GUEST=1
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod /modules/$module; done
ip link set lo up
ip link set eth0 up
until udhcpc -i eth0 -q -n -t 5 -T 2 -s /lease; do echo "guest: no lease"; done
pilotlight guest
echo "guest: ended with $?"
sleep 5
reboot -f
"#;

const LEASE: &str = r#"#!/bin/busybox sh
[ "$1" = bound ] || exit 0
ip addr replace "$ip/$mask" dev "$interface"
echo "guest: lease $ip from $serverid"
"#;

/// The newest kernel that is installed with its modules.
pub fn kernel() -> Option<PathBuf> {
    let mut kernels: Vec<_> = fs::read_dir("/boot").ok()?.flatten().map(|entry| entry.path()).collect();
    kernels.retain(|path| version(path).is_some_and(|version| Path::new("/lib/modules").join(version).is_dir()));
    kernels.sort();
    kernels.pop()
}

/// Whether there is one. Without it the test says so and passes, unless peers are required.
pub fn require_kernel() -> bool {
    let required = std::env::var_os("PILOTLIGHT_REQUIRE_PEERS").is_some_and(|value| value == "1");
    let found = kernel().is_some();
    assert!(found || !required, "a kernel in /boot is required (apt-get install linux-image-amd64)");
    if !found {
        peers::say("skipped: there is no kernel in /boot (apt-get install linux-image-amd64)");
    }
    found
}

pub fn version(kernel: &Path) -> Option<&str> {
    kernel.file_name()?.to_str()?.strip_prefix("vmlinuz-")
}

/// Fills `directory` with the agent's boot assets, and the same under the names that an image factory gives them.
pub fn build(directory: &Path) -> anyhow::Result<()> {
    let root = directory.join("root");
    for path in ["bin", "modules", "proc", "sys", "dev", "tmp", "usr/lib", "run"] {
        fs::create_dir_all(root.join(path))?;
    }
    let kernel = kernel().context("no kernel with modules in /boot")?;
    let modules = modules(version(&kernel).context("the kernel has no version")?, MODULES)?;
    let mut order = String::new();
    for module in &modules {
        let name = module.file_name().context("a module is a file")?.to_string_lossy();
        // Newer distributions compress their modules, which busybox need not understand.
        let plain = name.trim_end_matches(".xz");
        fs::copy(module, root.join("modules").join(&*name))?;
        if plain != name {
            let unpacked = Command::new("xz").arg("-d").arg(root.join("modules").join(&*name)).status()?;
            ensure!(unpacked.success(), "{name} does not unpack");
        }
        order.push_str(&format!("{plain}\n"));
    }
    fs::write(root.join("modules/order"), order)?;
    for program in ["busybox", "ipmitool"] {
        install(&find(program)?, &root, program)?;
    }
    install(Path::new(env!("CARGO_BIN_EXE_pilotlight")), &root, "pilotlight")?;
    // Debug symbols would travel through an emulated network card; without strip they do.
    let _ = Command::new("strip").arg(root.join("bin/pilotlight")).status();
    for (name, text) in [("init", INIT), ("lease", LEASE)] {
        fs::write(root.join(name), text)?;
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(0o755))?;
    }
    let initramfs = directory.join("initramfs-metal-amd64.xz");
    // The kernel's decompressor knows no other check than CRC32.
    let pack = "find . | cpio --quiet -o -H newc | xz --check=crc32 -1 >\"$0\"";
    let packed = Command::new("sh").args(["-c", pack]).arg(&initramfs).current_dir(&root).status()?;
    ensure!(packed.success(), "cpio or xz failed");
    fs::remove_dir_all(&root)?;
    fs::copy(&kernel, directory.join("kernel-amd64"))?;
    fs::write(directory.join("cmdline-metal-amd64"), "talos.platform=metal quiet panic=10\n")?;
    symlink("initramfs-metal-amd64.xz", directory.join("initramfs-amd64.xz"))?;
    Ok(())
}

/// The modules with what they need, in the order to load them.
pub fn modules(version: &str, names: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
    let mut modules = Vec::new();
    for module in names {
        let output = Command::new("modprobe").args(["-S", version, "--show-depends", module]).output()?;
        ensure!(output.status.success(), "modprobe knows no {module} of {version}");
        let lines = String::from_utf8(output.stdout)?;
        // "builtin name" needs no file.
        for path in lines.lines().filter_map(|line| line.strip_prefix("insmod ")) {
            let path = PathBuf::from(path.trim());
            if !modules.contains(&path) {
                modules.push(path);
            }
        }
    }
    Ok(modules)
}

/// Copies a program to `bin/name`, and its libraries to where it looks for them.
pub fn install(program: &Path, root: &Path, name: &str) -> anyhow::Result<()> {
    fs::copy(program, root.join("bin").join(name)).with_context(|| format!("copying {}", program.display()))?;
    // Fails for a static program, which needs none.
    let output = Command::new("ldd").arg(program).stderr(Stdio::null()).output()?;
    let text = String::from_utf8(output.stdout)?;
    let libraries: BTreeSet<_> = text.split_whitespace().filter(|word| word.starts_with('/')).collect();
    for library in libraries {
        let target = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(target.parent().context("a library is in a directory")?)?;
        fs::copy(library, &target).with_context(|| format!("copying {library}"))?;
    }
    Ok(())
}

pub fn find(program: &str) -> anyhow::Result<PathBuf> {
    let directories = ["/usr/bin", "/bin", "/usr/sbin", "/sbin"].map(Path::new);
    let found = directories.iter().map(|directory| directory.join(program)).find(|path| path.is_file());
    found.with_context(|| format!("{program} is missing"))
}
