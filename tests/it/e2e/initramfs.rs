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

/// What each of our machines does first.
const FIRST: &str = r"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod /modules/$module; done
";

/// What follows in the guest.
const GUEST: &str = r#"
export PILOTLIGHT_GUEST=1
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

fn version(kernel: &Path) -> Option<&str> {
    kernel.file_name()?.to_str()?.strip_prefix("vmlinuz-")
}

/// Fills `directory` with the agent's boot assets, and the same under the names that an image factory gives them.
pub fn build(directory: &Path) -> anyhow::Result<()> {
    let kernel = kernel().context("no kernel with modules in /boot")?;
    let root = Root::new(directory.join("root"), &kernel, MODULES)?;
    root.install(&find("ipmitool")?, "ipmitool")?;
    root.install(Path::new(env!("CARGO_BIN_EXE_pilotlight")), "pilotlight")?;
    // Debug symbols would travel through an emulated network card; without strip they do.
    let _ = Command::new("strip").arg(root.join("bin/pilotlight")).status();
    root.first(GUEST)?;
    root.script("lease", LEASE)?;
    // The kernel's decompressor knows no other check than CRC32.
    root.pack("xz --check=crc32 -1", &directory.join("initramfs-metal-amd64.xz"))?;
    fs::copy(&kernel, directory.join("kernel-amd64"))?;
    fs::write(directory.join("cmdline-metal-amd64"), "talos.platform=metal quiet panic=10\n")?;
    symlink("initramfs-metal-amd64.xz", directory.join("initramfs-amd64.xz"))?;
    Ok(())
}

/// A kernel module's octets. Newer distributions compress them, which neither busybox nor Buildroot's hooks need understand.
pub fn unpacked(module: &Path) -> anyhow::Result<Vec<u8>> {
    if module.extension().is_none_or(|extension| extension != "xz") {
        return Ok(fs::read(module)?);
    }
    let output = Command::new("xz").args(["--decompress", "--stdout"]).arg(module).output()?;
    ensure!(output.status.success(), "{} does not unpack", module.display());
    Ok(output.stdout)
}

/// The root of an initramfs, in a directory; it starts with [`FIRST`] and has busybox.
pub struct Root(PathBuf);

impl Root {
    /// One with these modules of `kernel` and what they need.
    pub fn new(path: PathBuf, kernel: &Path, names: &[&str]) -> anyhow::Result<Self> {
        let root = Self(path);
        for path in ["bin", "modules", "proc", "sys", "dev", "tmp", "usr/lib", "run"] {
            fs::create_dir_all(root.join(path))?;
        }
        root.install(&find("busybox")?, "busybox")?;
        let mut order = String::new();
        for module in modules(version(kernel).context("the kernel has no version")?, names)? {
            let name = module.file_name().context("a module is a file")?.to_string_lossy();
            let plain = name.trim_end_matches(".xz");
            fs::write(root.join("modules").join(plain), unpacked(&module)?)?;
            order.push_str(&format!("{plain}\n"));
        }
        fs::write(root.join("modules/order"), order)?;
        Ok(root)
    }

    pub fn join(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }

    /// Copies a program to `bin/name`, and its libraries to where it looks for them.
    pub fn install(&self, program: &Path, name: &str) -> anyhow::Result<()> {
        fs::copy(program, self.join("bin").join(name)).with_context(|| format!("copying {}", program.display()))?;
        // Fails for a static program, which needs none.
        let output = Command::new("ldd").arg(program).stderr(Stdio::null()).output()?;
        let text = String::from_utf8(output.stdout)?;
        let libraries: BTreeSet<_> = text.split_whitespace().filter(|word| word.starts_with('/')).collect();
        for library in libraries {
            let target = self.join(library.trim_start_matches('/'));
            fs::create_dir_all(target.parent().context("a library is in a directory")?)?;
            fs::copy(library, &target).with_context(|| format!("copying {library}"))?;
        }
        Ok(())
    }

    /// A file that can be run.
    pub fn script(&self, name: &str, text: &str) -> anyhow::Result<()> {
        fs::write(self.join(name), text)?;
        Ok(fs::set_permissions(self.join(name), fs::Permissions::from_mode(0o755))?)
    }

    /// What the kernel starts: [`FIRST`], and `then`.
    pub fn first(&self, then: &str) -> anyhow::Result<()> {
        self.script("init", &format!("{FIRST}{then}"))
    }

    /// Packs it through `filter` into `archive`. The directory is gone then.
    pub fn pack(self, filter: &str, archive: &Path) -> anyhow::Result<()> {
        let pack = format!("find . | cpio --quiet -o -H newc | {filter} >\"$0\"");
        let packed = Command::new("sh").args(["-c", &pack]).arg(archive).current_dir(&self.0).status()?;
        ensure!(packed.success(), "cpio or {filter} failed");
        Ok(fs::remove_dir_all(self.0)?)
    }
}

/// The modules with what they need, in the order to load them.
fn modules(version: &str, names: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
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

pub fn find(program: &str) -> anyhow::Result<PathBuf> {
    let directories = ["/usr/bin", "/bin", "/usr/sbin", "/sbin"].map(Path::new);
    let found = directories.iter().map(|directory| directory.join(program)).find(|path| path.is_file());
    found.with_context(|| format!("{program} is missing"))
}
