//! iPXE scripts: the subset that boot servers send, run against a [`World`] that does what the commands ask for.
//!
//! Semantics follow iPXE: a line is split at spaces, `&&`, `||` and `;` chain commands, settings are expanded within each
//! word when its command runs, a failing line ends the script.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;

use super::http::{FetchError, Fetched, resolve};

/// Lines run before a script counts as endless; eleven passes over eight NICs take a tenth of it.
const STEPS: u32 = 20_000;
/// Scripts that may wait for one another.
const DEPTH: u32 = 8;
/// Replacements of one running script by another.
const REPLACEMENTS: u32 = 32;
/// The longest word after expansion.
const LONGEST: usize = 16 * 1024;
/// What iPXE looks for at the start of an image before it takes it for a script.
const MAGIC: &[u8] = b"#!ipxe";

/// What scripts can reach.
#[async_trait]
pub(super) trait World: Send {
    /// The whole of a script or a program.
    async fn program(&mut self, url: &str) -> Result<Vec<u8>, FetchError>;
    /// Length and digest of a kernel or an initramfs, wholly received.
    async fn image(&mut self, url: &str) -> Result<Fetched, FetchError>;
    /// Waits.
    async fn sleep(&mut self, time: Duration);
    /// Puts a line on the screen.
    fn print(&mut self, line: String);
    /// Whether drive 0x80 starts.
    fn disk_starts(&self) -> bool;
}

/// How a script ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// `boot`: a kernel with its command line, and the octets of its initrds.
    Boot { kernel: String, cmdline: String, octets: u64, initrds: Vec<u64> },
    /// A binary was chained.
    Program { url: String, octets: Vec<u8> },
    /// `sanboot` of a disk that starts.
    Disk,
    /// `exit`, or the script's end: the firmware tries its next device.
    Exit,
    /// A command failed and nothing caught it; so iPXE exits as well.
    Failed(String),
    /// `reboot`.
    Reboot,
    /// `poweroff`.
    PowerOff,
    /// `shell`: waits for a person.
    Shell,
}

/// A kernel that `kernel` or `imgselect` has loaded.
#[derive(Clone, Debug)]
struct Kernel {
    url: String,
    cmdline: String,
    octets: u64,
}

/// What stops a script.
enum Stop {
    /// The command failed; `||` may catch it.
    Failure(String),
    /// `exit`, with its status.
    Exit(bool),
    /// Goes on at this line.
    Jump(usize),
    /// Another script takes this one's place.
    Replace { body: Vec<u8>, url: String },
    /// The machine leaves iPXE.
    Leave(Outcome),
}

/// The script embedded in a boot program: from `#!ipxe` to the first octet that is no text; `None` without one.
///
/// iPXE's own binaries hold the bare magic as well, in the code that looks for it; so a newline must follow.
pub(super) fn embedded(program: &[u8]) -> Option<&[u8]> {
    let start = (0..program.len()).find(|at| is_script(&program[*at..]) && program[at + MAGIC.len()] != b' ')?;
    let is_text = |octet: &u8| matches!(octet, b'\t' | b'\n' | b'\r' | 0x20..=0x7e);
    let length = program[start..].iter().position(|octet| !is_text(octet)).unwrap_or(program.len() - start);
    Some(&program[start..start + length])
}

/// Whether iPXE takes an image for a script.
pub(super) fn is_script(image: &[u8]) -> bool {
    image.strip_prefix(MAGIC).and_then(<[u8]>::first).is_some_and(u8::is_ascii_whitespace)
}

/// iPXE while it runs: its settings and images.
pub(super) struct Ipxe<'w, W> {
    world: &'w mut W,
    settings: BTreeMap<String, String>,
    kernel: Option<Kernel>,
    initrds: Vec<u64>,
    steps: u32,
}

impl<'w, W: World> Ipxe<'w, W> {
    /// iPXE with these settings, by name: `uuid`, `net0/mac`, …
    pub(super) fn new(world: &'w mut W, settings: BTreeMap<String, String>) -> Self {
        Self { world, settings, kernel: None, initrds: Vec::new(), steps: 0 }
    }

    /// Runs the script `body`; `url` is where it came from and what its relative URLs refer to.
    pub(super) async fn run(&mut self, body: &[u8], url: Option<&str>) -> Outcome {
        match self.script(body.to_vec(), url.map(str::to_owned), 0).await {
            Ok(()) | Err(Stop::Exit(_)) => Outcome::Exit,
            Err(Stop::Failure(reason)) => Outcome::Failed(reason),
            Err(Stop::Leave(outcome)) => outcome,
            Err(Stop::Jump(_) | Stop::Replace { .. }) => Outcome::Failed("script lost its place".into()),
        }
    }

    /// Sets a setting, as DHCP does.
    pub(super) fn set(&mut self, name: &str, value: String) {
        self.settings.insert(name.to_owned(), value);
    }

    /// `text` with every `${setting}` replaced, innermost first; unset ones vanish.
    ///
    /// # Errors
    ///
    /// A word that grows beyond 16 KiB.
    pub(super) fn expand(&self, text: &str) -> Result<String, String> {
        let mut text = text.to_owned();
        // Values are expanded again, as in iPXE; a value that names itself runs into the bound.
        for _ in 0..256 {
            let Some(first) = text.find("${") else { return Ok(text) };
            let Some(end) = text[first..].find('}').map(|at| first + at) else { return Ok(text) };
            let start = text[..end].rfind("${").unwrap_or(first);
            let value = self.setting(&text[start + 2..end]);
            text.replace_range(start..=end, &value);
            if text.len() > LONGEST {
                return Err("a word is too long".into());
            }
        }
        Err("settings refer to one another without end".into())
    }

    /// The value of `name[:type]`, empty when unset.
    fn setting(&self, name: &str) -> String {
        let (name, kind) = name.split_once(':').map_or((name, None), |(name, kind)| (name, Some(kind)));
        let name = match name {
            "mac" | "ip" | "netmask" | "gateway" | "ifname" => format!("net0/{name}"),
            name => name.replacen("netX/", "net0/", 1),
        };
        let Some(value) = self.settings.get(&name) else { return String::new() };
        match kind {
            Some("hexhyp") => value.replace(':', "-"),
            Some("hexraw") => value.replace([':', '-'], ""),
            Some("uristring") => value
                .bytes()
                .map(|octet| match octet {
                    b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                        char::from(octet).to_string()
                    }
                    octet => format!("%{octet:02X}"),
                })
                .collect(),
            _ => value.clone(),
        }
    }

    fn script(&mut self, body: Vec<u8>, url: Option<String>, depth: u32) -> BoxFuture<'_, Result<(), Stop>> {
        Box::pin(async move {
            if depth >= DEPTH {
                return Err(Stop::Failure("scripts wait for one another without end".into()));
            }
            let (mut body, mut url) = (body, url);
            for _ in 0..REPLACEMENTS {
                match self.lines(&String::from_utf8_lossy(&body), url.as_deref(), depth).await {
                    Err(Stop::Replace { body: next, url: from }) => (body, url) = (next, Some(from)),
                    end => return end,
                }
            }
            Err(Stop::Failure("scripts replace one another without end".into()))
        })
    }

    async fn lines(&mut self, text: &str, url: Option<&str>, depth: u32) -> Result<(), Stop> {
        let lines: Vec<&str> = text.split('\n').map(|line| line.trim_end_matches('\r')).collect();
        let mut at = 0;
        while let Some(line) = lines.get(at) {
            at += 1;
            if line.starts_with(':') {
                continue;
            }
            // A line without a word costs no step: a padded placeholder may have a thousand of them.
            if line.trim().is_empty() {
                continue;
            }
            self.steps += 1;
            if self.steps > STEPS {
                return Err(Stop::Leave(Outcome::Failed("script runs without end".into())));
            }
            match self.line(line, &lines, url, depth).await {
                Ok(()) => {}
                Err(Stop::Jump(line)) => at = line,
                Err(stop) => return Err(stop),
            }
        }
        Ok(())
    }

    async fn line(&mut self, line: &str, lines: &[&str], url: Option<&str>, depth: u32) -> Result<(), Stop> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let words = &words[..words.iter().position(|word| word.starts_with('#')).unwrap_or(words.len())];
        let mut status: Result<(), String> = Ok(());
        let mut run = true;
        let mut rest = words;
        loop {
            let end = rest.iter().position(|word| matches!(*word, "&&" | "||" | ";")).unwrap_or(rest.len());
            if run && end > 0 {
                let command = rest[..end].iter().map(|word| self.expand(word)).collect::<Result<Vec<_>, _>>();
                let result = match command {
                    Ok(command) => self.command(&command, lines, url, depth).await,
                    Err(reason) => Err(Stop::Failure(reason)),
                };
                status = match result {
                    Ok(()) => Ok(()),
                    Err(Stop::Failure(reason)) => Err(reason),
                    Err(stop) => return Err(stop),
                };
            } else if run {
                status = Ok(());
            }
            let Some(operator) = rest.get(end) else { break };
            run = match *operator {
                "&&" => status.is_ok(),
                "||" => status.is_err(),
                _ => true,
            };
            rest = &rest[end + 1..];
        }
        status.map_err(Stop::Failure)
    }

    async fn command(&mut self, words: &[String], lines: &[&str], url: Option<&str>, depth: u32) -> Result<(), Stop> {
        let Some((name, words)) = words.split_first() else { return Ok(()) };
        // These take every word as it is, so that `set offset -1` sets an offset.
        let plain = matches!(name.as_str(), "set" | "iseq" | "isset");
        let (options, arguments) = if plain { words.split_at(0) } else { options(words) };
        let failure = |reason: String| Err(Stop::Failure(reason));
        let check = |holds: bool, reason: &str| if holds { Ok(()) } else { Err(Stop::Failure(reason.into())) };
        match name.as_str() {
            "echo" => {
                self.world.print(arguments.join(" "));
                Ok(())
            }
            // Nobody is at the keyboard.
            "prompt" => failure("prompt: nobody answered".into()),
            "sleep" => {
                let seconds = arguments.first().and_then(|word| word.parse().ok()).unwrap_or(0);
                self.world.sleep(Duration::from_secs(seconds)).await;
                Ok(())
            }
            "goto" => {
                let label = arguments.first().map(String::as_str).unwrap_or_default();
                let found = lines.iter().position(|line| {
                    line.strip_prefix(':').is_some_and(|name| name.split_whitespace().next() == Some(label))
                });
                match found {
                    Some(line) => Err(Stop::Jump(line + 1)),
                    None => failure(format!("goto: no label {label}")),
                }
            }
            "set" => {
                let Some((name, value)) = arguments.split_first() else { return failure("set: no setting".into()) };
                let name = name.split(':').next().unwrap_or_default();
                if value.is_empty() {
                    self.settings.remove(name);
                } else if self.settings.len() < 1024 || self.settings.contains_key(name) {
                    self.settings.insert(name.to_owned(), value.join(" "));
                } else {
                    return failure("set: no memory".into());
                }
                Ok(())
            }
            "clear" => {
                arguments.iter().for_each(|name| {
                    self.settings.remove(name);
                });
                Ok(())
            }
            "isset" => check(arguments.first().is_some_and(|word| !word.is_empty()), "isset: unset"),
            "iseq" => check(arguments.len() == 2 && arguments[0] == arguments[1], "iseq: not equal"),
            "inc" => {
                let Some(name) = arguments.first() else { return failure("inc: no setting".into()) };
                let by: u64 = arguments.get(1).map_or(Some(1), |word| word.parse().ok()).unwrap_or(1);
                let now: u64 = self.setting(name).parse().unwrap_or(0);
                self.set(name, now.wrapping_add(by).to_string());
                Ok(())
            }
            "ifopen" | "ifclose" | "ifstat" | "iflinkwait" | "ifconf" | "dhcp" => self.interface(name, arguments),
            "route" | "imgstat" | "config" | "colour" | "cpair" | "console" | "cpuid" | "sync" => Ok(()),
            "imgfree" => {
                self.kernel = None;
                self.initrds.clear();
                Ok(())
            }
            "kernel" | "imgselect" => {
                let Some((file, cmdline)) = arguments.split_first() else { return failure("kernel: no URL".into()) };
                let octets = self.image(url, file).await?;
                self.kernel = Some(Kernel { url: file.clone(), cmdline: cmdline.join(" "), octets });
                Ok(())
            }
            "initrd" | "module" | "imgfetch" => {
                let Some(file) = arguments.first() else { return failure(format!("{name}: no URL")) };
                let octets = self.image(url, file).await?;
                if self.initrds.len() == 16 {
                    return failure(format!("{name}: no memory"));
                }
                self.initrds.push(octets);
                Ok(())
            }
            "imgargs" => match (&mut self.kernel, arguments.split_first()) {
                (Some(kernel), Some((_, cmdline))) => {
                    kernel.cmdline = cmdline.join(" ");
                    Ok(())
                }
                _ => failure("imgargs: no such image".into()),
            },
            "boot" | "imgexec" if arguments.is_empty() => self.boot(),
            "chain" | "boot" | "imgexec" => {
                let Some(file) = arguments.first() else { return failure("chain: no URL".into()) };
                let replace = options.iter().any(|option| matches!(option.as_str(), "--replace" | "-r"));
                self.chain(resolve(url, file), replace, depth).await
            }
            "exit" => Err(Stop::Exit(arguments.first().is_none_or(|status| status == "0"))),
            "sanboot" => match self.world.disk_starts() {
                true => Err(Stop::Leave(Outcome::Disk)),
                false => failure("sanboot: the disk does not start".into()),
            },
            "shell" => Err(Stop::Leave(Outcome::Shell)),
            "reboot" => Err(Stop::Leave(Outcome::Reboot)),
            "poweroff" => Err(Stop::Leave(Outcome::PowerOff)),
            other => failure(format!("{other}: command not found")),
        }
    }

    /// A command on interfaces: all of them when none is named. The link is up and the lease is the machine's address.
    fn interface(&mut self, command: &str, names: &[String]) -> Result<(), Stop> {
        for name in names {
            if !self.settings.contains_key(&format!("{name}/mac")) {
                return Err(Stop::Failure(format!("{command}: no such interface: {name}")));
            }
        }
        Ok(())
    }

    async fn image(&mut self, base: Option<&str>, file: &str) -> Result<u64, Stop> {
        match self.world.image(&resolve(base, file)).await {
            Ok(fetched) => Ok(fetched.octets),
            Err(error) => Err(Stop::Failure(chain_of(&error))),
        }
    }

    fn boot(&mut self) -> Result<(), Stop> {
        let Some(Kernel { url, cmdline, octets }) = self.kernel.take() else {
            return Err(Stop::Failure("boot: no kernel".into()));
        };
        let initrds = std::mem::take(&mut self.initrds);
        Err(Stop::Leave(Outcome::Boot { kernel: url, cmdline, octets, initrds }))
    }

    async fn chain(&mut self, url: String, replace: bool, depth: u32) -> Result<(), Stop> {
        let body = match self.world.program(&url).await {
            Ok(body) => body,
            Err(error) => return Err(Stop::Failure(chain_of(&error))),
        };
        if !is_script(&body) {
            return Err(Stop::Leave(Outcome::Program { url, octets: body }));
        }
        if replace {
            return Err(Stop::Replace { body, url });
        }
        match self.script(body, Some(url), depth + 1).await {
            // What the inner script exits with is the status of `chain`.
            Err(Stop::Exit(true)) => Ok(()),
            Err(Stop::Exit(false)) => Err(Stop::Failure("chain: script exited with an error".into())),
            end => end,
        }
    }
}

/// Splits leading options from arguments. An option's value follows `=` or, for those that take one, as the next word.
fn options(words: &[String]) -> (&[String], &[String]) {
    let mut at = 0;
    while let Some(word) = words.get(at).filter(|word| word.starts_with('-') && word.len() > 1) {
        let with_value = matches!(
            word.as_str(),
            "--name"
                | "-n"
                | "--timeout"
                | "-t"
                | "--key"
                | "-k"
                | "--drive"
                | "-d"
                | "--ext"
                | "--configurator"
                | "-c"
        );
        at += 1 + usize::from(with_value && at + 1 < words.len());
    }
    words.split_at(at)
}

/// An error and its causes on one line, which is all that iPXE's screen has room for.
pub(super) fn chain_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
