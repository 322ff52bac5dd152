//! iPXE scripts: the init script that finds us, and what a machine is told to boot.
//!
//! They run on iPXE of 2019 as on 2.0: no `params`, no `iflinkwait`, no menus.

use std::fmt::Write as _;

use crate::boot::advertise::Advertise;
use crate::boot::request::BootAnswer;
use crate::machine::Arch;

/// The longest kernel command line of x86 and ARM64; a longer one is cut by the kernel without a word.
pub const MAX_COMMAND_LINE: usize = 2047;

/// How an installed machine that booted from the network is sent to its disk (`--boot-from-disk-method`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DiskMethod {
    /// A script that exits: the firmware goes on with its next boot device.
    #[default]
    IpxeExit,
    /// 404: an iPXE that fetched the URL itself gives up. Our init script is given the exit script instead.
    Http404,
    /// A script that boots BIOS drive 0x80, and exits where there is no such drive to boot (UEFI).
    IpxeSanboot,
}

impl std::str::FromStr for DiskMethod {
    type Err = InvalidDiskMethod;
    fn from_str(text: &str) -> Result<Self, InvalidDiskMethod> {
        match text {
            "ipxe-exit" => Ok(Self::IpxeExit),
            "http-404" => Ok(Self::Http404),
            "ipxe-sanboot" => Ok(Self::IpxeSanboot),
            _ => Err(InvalidDiskMethod),
        }
    }
}

/// A disk method that does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("want ipxe-exit, http-404 or ipxe-sanboot")]
pub struct InvalidDiskMethod;

/// Why a boot script could not be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScriptError {
    /// iPXE would take this argument for its own syntax.
    #[error("kernel argument {arg:?} can't be passed through iPXE")]
    Argument {
        /// The argument.
        arg: String,
    },
    /// The kernel would cut the command line.
    #[error("kernel command line of {octets} octets, the kernel takes {MAX_COMMAND_LINE}")]
    TooLong {
        /// Its size before iPXE expands settings.
        octets: usize,
    },
}

/// The init script, embedded in our binaries and served at `/ipxe/init.ipxe`.
///
/// Asks `boot.ipxe` on the card that is configured already, else on each card in turn; a card without an answer gives way to
/// the next. After ten rounds it reboots, since the box may have been replaced. `disk=script` in the query tells the
/// provider that a 404 would only make this script try again, so that machines which belong on their disk get a script.
///
/// Fits 1017 octets, the placeholder of the usual binaries, with any host of the 253 characters that DNS allows.
///
/// Source: contract section 4.5.
pub fn init(advertise: &Advertise) -> String {
    let url = advertise.url("/ipxe/boot.ipxe");
    // `uristring` encodes what vendors put into serial numbers; a space would end the URL.
    format!(
        "#!ipxe
set r:int32 0
isset ${{netX/ip}} && set i X && goto ask ||
:round
set i:int32 0
:card
isset ${{net${{i}}/mac}} || goto over
ifclose
dhcp net${{i}} && goto ask ||
:next
iseq ${{i}} X && goto round ||
inc i && goto card ||
:over
inc r
iseq ${{r}} 10 && reboot ||
echo No answer, trying again
sleep 5
goto round
:ask
chain --replace --autofree {url}?disk=script&uuid=${{uuid}}&mac=${{net${{i}}/mac:hexhyp}}&arch=${{buildarch}}\
&domain=${{domain:uristring}}&hostname=${{hostname:uristring}}&serial=${{serial:uristring}} || goto next
"
    )
}

/// The arguments that the provider adds to a kernel's command line.
#[derive(Clone, Debug)]
pub struct KernelArgs<'a> {
    /// Where the machine reaches us.
    pub advertise: &'a Advertise,
    /// The machine's architecture.
    pub arch: Arch,
    /// `talos.config.inline`: the machine configuration, zstd-compressed, base64. It holds the join token; only where TLS
    /// must be trusted before anything can be fetched.
    pub inline_config: Option<&'a crate::secret::Secret<String>>,
    /// What the agent alone gets.
    pub agent: Option<AgentArgs<'a>>,
    /// The machine's own arguments, separated by white space.
    pub extra: &'a str,
}

/// The agent's arguments.
#[derive(Clone, Copy, Debug, Default)]
pub struct AgentArgs<'a> {
    /// `https://host:port` of the TLS listener; without it the cleartext address is told.
    pub tls_address: Option<&'a str>,
    /// Report the lab's power API instead of a BMC.
    pub test_mode: bool,
    /// Do not verify the provider's certificate.
    pub tls_skip_verify: bool,
}

impl KernelArgs<'_> {
    /// The arguments in the contract's order. `${uuid}` is left for iPXE, or Talos, to expand.
    ///
    /// Source: contract section 6.5.
    pub fn to_vec(&self) -> Vec<String> {
        let mut args = vec![format!("talos.config={}", self.advertise.url("/config?u=${uuid}"))];
        if let Some(config) = self.inline_config {
            args.push(format!("talos.config.inline={}", config.reveal()));
        }
        if let Some(agent) = self.agent {
            let address = agent.tls_address.map_or_else(|| self.advertise.provider_address(), str::to_owned);
            args.push(format!("metal.provider.address={address}"));
            if agent.test_mode {
                args.push("metal.provider.test.mode=1".into());
            }
            if agent.tls_skip_verify {
                args.push("metal.provider.tls.skip.verify=1".into());
            }
        }
        args.push("console=tty0".into());
        args.push(match self.arch {
            Arch::Amd64 => "console=ttyS0".into(),
            Arch::Arm64 => "console=ttyAMA0".into(),
        });
        args.extend(self.extra.split_whitespace().map(str::to_owned));
        args
    }
}

/// A script that boots a kernel and an initramfs from `kernel_url` and `initrd_url`.
///
/// `base` is the image's own command line (`cmdline-metal-<arch>`), put before `args`.
///
/// # Errors
///
/// [`ScriptError`] for an argument that iPXE would not pass on, or a command line that the kernel would cut.
pub fn boot(kernel_url: &str, initrd_url: &str, base: &str, args: &[String]) -> Result<String, ScriptError> {
    let initrd = initrd_url.rsplit('/').next().unwrap_or(initrd_url);
    // The kernel's EFI stub finds the initramfs by this name under iPXE that is too old to hand it over (before 2023);
    // elsewhere it means nothing.
    let mut line = format!("initrd={initrd}");
    for arg in base.split_whitespace().chain(args.iter().map(String::as_str)) {
        if arg.starts_with('#')
            || matches!(arg, "||" | "&&")
            || arg.chars().any(|char| char.is_control() || char == ' ')
        {
            return Err(ScriptError::Argument { arg: arg.to_owned() });
        }
        line.push(' ');
        line.push_str(arg);
    }
    if line.len() > MAX_COMMAND_LINE {
        return Err(ScriptError::TooLong { octets: line.len() });
    }
    let mut script = String::from("#!ipxe\nimgfree\n");
    write!(script, "kernel {kernel_url} {line}\ninitrd {initrd_url}\nboot\n").expect("writing to a String cannot fail");
    Ok(script)
}

/// A script that boots a unified kernel image, whose command line is sealed inside it.
pub fn boot_uki(url: &str) -> String {
    format!("#!ipxe\nimgfree\nkernel {url}\nboot\n")
}

/// A script that hands over to another one, such as a factory's.
pub fn chain(url: &str) -> String {
    format!("#!ipxe\nchain --replace {url}\n")
}

/// The URL of an asset in our own image cache.
pub fn image_url(advertise: &Advertise, schematic: &str, version: &str, file: &str) -> String {
    advertise.url(&format!("/image/{schematic}/{version}/{file}"))
}

/// The answer to a machine that belongs on its disk.
///
/// `disk_script` says that our init script asks: it takes a 404 for a failure, so it is given a script whatever the method.
pub fn disk(method: DiskMethod, disk_script: bool) -> BootAnswer {
    let exit = || BootAnswer::script("#!ipxe\nexit\n".into(), "installed: boots its disk");
    match method {
        DiskMethod::IpxeExit => exit(),
        DiskMethod::Http404 if disk_script => exit(),
        DiskMethod::Http404 => BootAnswer::not_found("", "installed: boots its disk"),
        DiskMethod::IpxeSanboot => BootAnswer::script(
            "#!ipxe\nsanboot --no-describe --drive 0x80 || exit\n".into(),
            "installed: boots its disk",
        ),
    }
}

/// The answer to our init script on a machine that can't be told from others: shows `text` on its screen for a minute, since
/// only who stands there can help, then reboots. iPXE shows nothing of a 4xx but its class.
pub fn unusable(text: &str) -> BootAnswer {
    let shown: String = text.chars().filter(|char| char.is_ascii_alphanumeric() || " .,:;-".contains(*char)).collect();
    BootAnswer::script(format!("#!ipxe\necho {shown}\nsleep 60\nreboot\n"), "the machine has no usable UUID")
}

/// Why a machine is not booted from the network at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// An operator cordoned it.
    Cordoned,
    /// An operator rejected it.
    Rejected,
}

/// The answer to a machine that is left alone: 404, as from the Go provider, to any iPXE but ours; to our init script, which
/// would try again and reboot in the end, the way to its disk.
///
/// Source: contract sections 6.2 and 12.2 (7).
pub fn refused(refusal: Refusal, method: DiskMethod, disk_script: bool) -> BootAnswer {
    let (body, reason) = match refusal {
        Refusal::Cordoned => ("machine is cordoned", "cordoned: left alone"),
        Refusal::Rejected => ("", "rejected: left alone"),
    };
    match disk_script {
        true => BootAnswer { reason, ..disk(method, true) },
        false => BootAnswer::not_found(body, reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::StatusCode;

    fn advertise(host: &str) -> Advertise {
        Advertise { host: host.parse().unwrap(), port: 50042 }
    }

    #[test]
    fn the_init_script_fits_the_placeholder_for_any_host() {
        let label = "a".repeat(63);
        let name = [label.as_str(); 4].join(".")[..253].to_owned();
        for host in ["172.16.0.42", "2001:db8:1111:2222:3333:4444:5555:6666", &name] {
            let script = init(&advertise(host));
            assert!(script.len() <= 1017, "{host}: {}", script.len());
            assert!(script.starts_with("#!ipxe\n") && script.is_ascii());
        }
        assert!(
            init(&advertise("fd00::1")).contains("http://[fd00::1]:50042/ipxe/boot.ipxe?disk=script&uuid=${uuid}&")
        );
    }

    #[test]
    fn every_label_that_is_jumped_to_exists() {
        let script = init(&advertise("10.0.0.1"));
        let targets = script.split("goto ").skip(1).filter_map(|rest| rest.split_whitespace().next());
        for target in targets {
            assert!(script.contains(&format!("\n:{target}\n")), "{target}");
        }
    }

    #[test]
    fn kernel_arguments_come_in_the_contracts_order() {
        let (advertise, inline) = (advertise("172.16.0.42"), crate::secret::Secret::new("KLUv".to_owned()));
        let mut args = KernelArgs {
            advertise: &advertise,
            arch: Arch::Amd64,
            inline_config: Some(&inline),
            agent: Some(AgentArgs {
                tls_address: Some("https://172.16.0.42:50043"),
                test_mode: true,
                tls_skip_verify: true,
            }),
            extra: " a=1\n b ",
        };
        assert_eq!(
            args.to_vec(),
            [
                "talos.config=http://172.16.0.42:50042/config?u=${uuid}",
                "talos.config.inline=KLUv",
                "metal.provider.address=https://172.16.0.42:50043",
                "metal.provider.test.mode=1",
                "metal.provider.tls.skip.verify=1",
                "console=tty0",
                "console=ttyS0",
                "a=1",
                "b",
            ]
        );
        assert!(!format!("{args:?}").contains("KLUv"));
        args = KernelArgs { arch: Arch::Arm64, inline_config: None, agent: None, extra: "", ..args };
        assert_eq!(
            args.to_vec(),
            ["talos.config=http://172.16.0.42:50042/config?u=${uuid}", "console=tty0", "console=ttyAMA0"]
        );
        args.agent = Some(AgentArgs::default());
        assert_eq!(args.to_vec()[1], "metal.provider.address=172.16.0.42:50042");
    }

    #[test]
    fn a_boot_script_loads_kernel_and_initramfs_with_the_images_own_arguments_first() {
        let script = boot(
            "http://a:1/image/s/v1/kernel-amd64",
            "http://a:1/image/s/v1/initramfs-amd64.xz",
            " talos.platform=metal slab_nomerge\n",
            &["talos.config=http://a:1/config?u=${uuid}".into()],
        );
        assert_eq!(
            script.unwrap(),
            "#!ipxe\nimgfree\nkernel http://a:1/image/s/v1/kernel-amd64 initrd=initramfs-amd64.xz talos.platform=metal \
             slab_nomerge talos.config=http://a:1/config?u=${uuid}\ninitrd http://a:1/image/s/v1/initramfs-amd64.xz\nboot\n"
        );
    }

    #[test]
    fn an_argument_cannot_become_a_command() {
        for bad in ["||", "&&", "#x", "a b", "a\nshell"] {
            assert_eq!(boot("k", "i", "", &[bad.into()]), Err(ScriptError::Argument { arg: bad.into() }), "{bad}");
        }
        assert!(matches!(boot("k", "i", "", &["x".repeat(2048)]), Err(ScriptError::TooLong { .. })));
    }

    #[test]
    fn a_machine_that_belongs_on_its_disk_gets_there_by_every_method() {
        for (method, disk_script, status, command) in [
            (DiskMethod::IpxeExit, false, 200, "exit"),
            (DiskMethod::IpxeExit, true, 200, "exit"),
            (DiskMethod::Http404, false, 404, ""),
            (DiskMethod::Http404, true, 200, "exit"),
            (DiskMethod::IpxeSanboot, false, 200, "sanboot --no-describe --drive 0x80 || exit"),
            (DiskMethod::IpxeSanboot, true, 200, "sanboot --no-describe --drive 0x80 || exit"),
        ] {
            let answer = disk(method, disk_script);
            assert_eq!(answer.status.as_u16(), status, "{method:?} {disk_script}");
            let body = String::from_utf8(answer.body.to_vec()).unwrap();
            assert_eq!(body.lines().nth(1).unwrap_or_default(), command, "{method:?} {disk_script}");
        }
    }

    #[test]
    fn what_is_shown_on_a_screen_is_no_script() {
        let body = unusable("no uuid; ${shell} || shell\nshell #").body;
        assert_eq!(&body[..], b"#!ipxe\necho no uuid; shell  shellshell \nsleep 60\nreboot\n");
    }

    #[test]
    fn a_refused_machine_gets_404_unless_our_script_asks() {
        let cordoned = refused(Refusal::Cordoned, DiskMethod::IpxeExit, false);
        assert_eq!((cordoned.status, &cordoned.body[..]), (StatusCode::NOT_FOUND, &b"machine is cordoned"[..]));
        assert!(refused(Refusal::Rejected, DiskMethod::IpxeSanboot, false).body.is_empty());
        for method in [DiskMethod::IpxeExit, DiskMethod::Http404, DiskMethod::IpxeSanboot] {
            assert_eq!(refused(Refusal::Rejected, method, true).status, StatusCode::OK);
        }
    }
}
