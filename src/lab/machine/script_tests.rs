//! What scripts mean, one sentence each.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use proptest::prelude::*;

use super::http::{FetchError, Fetched};
use super::script::{Ipxe, Outcome, World, embedded, is_script};

/// Files by URL; everything else is 404.
#[derive(Default)]
struct Paper {
    files: BTreeMap<String, Vec<u8>>,
    asked: Vec<String>,
    lines: Vec<String>,
    disk: bool,
    slept: Duration,
}

#[async_trait]
impl World for Paper {
    async fn program(&mut self, url: &str) -> Result<Vec<u8>, FetchError> {
        self.asked.push(url.into());
        self.files.get(url).cloned().ok_or_else(|| FetchError::Status { url: url.into(), status: 404 })
    }
    async fn image(&mut self, url: &str) -> Result<Fetched, FetchError> {
        let body = self.program(url).await?;
        Ok(Fetched { octets: body.len() as u64, digest: [0; 32], body: Vec::new() })
    }
    async fn sleep(&mut self, time: Duration) {
        self.slept += time;
    }
    fn print(&mut self, line: String) {
        self.lines.push(line);
    }
    fn disk_starts(&self) -> bool {
        self.disk
    }
}

fn settings() -> BTreeMap<String, String> {
    [("uuid", "u-1"), ("net0/mac", "02:00:00:00:00:01"), ("net0/ip", "127.1.0.1"), ("buildarch", "x86_64")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

async fn run(world: &mut Paper, script: &str) -> Outcome {
    Ipxe::new(world, settings()).run(script.as_bytes(), Some("http://box/ipxe/boot.ipxe")).await
}

/// What a script prints.
async fn printed(script: &str) -> Vec<String> {
    let mut world = Paper::default();
    run(&mut world, script).await;
    world.lines
}

#[tokio::test]
async fn words_and_settings_mean_what_they_mean_in_ipxe() {
    for (sentence, script, lines) in [
        ("a setting expands", "echo ${uuid}", "u-1"),
        ("an unset setting vanishes", "echo a${nothing}b", "ab"),
        ("mac is the first NIC's", "echo ${mac}", "02:00:00:00:00:01"),
        ("hexhyp puts hyphens", "echo ${net0/mac:hexhyp}", "02-00-00-00-00-01"),
        ("hexraw puts nothing", "echo ${net0/mac:hexraw}", "020000000001"),
        ("uristring escapes", "set a x y/z\necho ${a:uristring}", "x%20y%2Fz"),
        ("an index expands within a name", "set idx 0\necho ${net${idx}/ip}", "127.1.0.1"),
        ("inc counts from nothing", "inc x\ninc x 4\necho ${x}", "5"),
        ("set without a value clears", "set x 1\nset x\nisset ${x} || echo gone", "gone"),
        ("iseq compares", "iseq a a && echo same || echo other", "same"),
        ("a failed command runs what follows ||", "iseq a b && echo same || echo other", "other"),
        ("nobody answers a prompt", "prompt --key 0x02 --timeout 2000 Press && shell ||\necho on", "on"),
        ("goto skips", "goto there\necho no\n:there\necho yes", "yes"),
        ("a missing label is a failure", "goto nowhere || echo lost", "lost"),
        ("a comment ends a line", "echo a # b", "a"),
        ("an unknown command is a failure", "frobnicate || echo what", "what"),
        ("an interface that is there opens", "ifopen net0 && echo up", "up"),
        ("an interface that is not there fails", "dhcp net7 || echo none", "none"),
        ("a semicolon goes on", "isset ; echo on", "on"),
        ("carriage returns are white", "echo a\r\necho ${uuid}\r", "a|u-1"),
        ("an unclosed setting stays", "echo ${uuid", "${uuid"),
    ] {
        assert_eq!(printed(&format!("#!ipxe\n{script}\n")).await.join("|"), lines, "{sentence}");
    }
}

#[tokio::test]
async fn scripts_end_as_they_do_in_ipxe() {
    let failed = |text: &str| Outcome::Failed(text.into());
    for (sentence, script, outcome) in [
        ("the end of a script exits", "echo a", Outcome::Exit),
        ("exit exits", "exit\nreboot", Outcome::Exit),
        ("a failing line ends a script", "iseq a b\nreboot", failed("iseq: not equal")),
        ("a failure at its end counts", "isset ${nothing}", failed("isset: unset")),
        ("|| alone forgives", "iseq a b ||\nreboot", Outcome::Reboot),
        ("reboot", "reboot", Outcome::Reboot),
        ("poweroff", "poweroff", Outcome::PowerOff),
        ("shell waits", "shell", Outcome::Shell),
        (
            "a blank disk does not start",
            "sanboot --no-describe --drive 0x80",
            failed("sanboot: the disk does not start"),
        ),
        ("boot needs a kernel", "boot", failed("boot: no kernel")),
        ("an endless loop is noticed", ":a\ngoto a", failed("goto")),
        ("an endless script is noticed", ":a\nset x 1\ngoto a", failed("script")),
        ("settings that name one another are noticed", "set a ${a}b\nset b $\nset a ${b}{a}\necho ${a}", Outcome::Exit),
    ] {
        let ended = run(&mut Paper::default(), &format!("#!ipxe\n{script}\n")).await;
        match (&ended, &outcome) {
            (Outcome::Failed(reason), Outcome::Failed(start)) => {
                assert!(
                    reason.starts_with(start.as_str()) || reason == "script runs without end",
                    "{sentence}: {reason}"
                );
            }
            _ => assert_eq!(ended, outcome, "{sentence}"),
        }
    }
}

#[tokio::test]
async fn a_kernel_boots_with_its_expanded_command_line() {
    let mut world = Paper::default();
    world.files.insert("http://box/assets/kernel".into(), vec![0; 10]);
    world.files.insert("http://box/ipxe/initramfs".into(), vec![0; 20]);
    let script = "#!ipxe\nimgfree\nkernel /assets/kernel talos.config=http://box/config?u=${uuid} quiet\n\
                  initrd initramfs\nboot\n";
    let outcome = run(&mut world, script).await;
    assert_eq!(
        outcome,
        Outcome::Boot {
            kernel: "/assets/kernel".into(),
            cmdline: "talos.config=http://box/config?u=u-1 quiet".into(),
            octets: 10,
            initrds: vec![20],
        }
    );
}

#[tokio::test]
async fn a_failed_initrd_does_not_boot() {
    let mut world = Paper::default();
    world.files.insert("http://box/kernel".into(), vec![0; 10]);
    let outcome = run(&mut world, "#!ipxe\nkernel /kernel\ninitrd /missing\nboot\n").await;
    assert_eq!(outcome, Outcome::Failed("http://box/missing: HTTP 404".into()));
}

#[tokio::test]
async fn replacing_never_returns_and_chaining_does() {
    let mut world = Paper::default();
    world.files.insert("http://box/inner".into(), b"#!ipxe\necho inner\nexit\n".to_vec());
    run(&mut world, "#!ipxe\nchain /inner && echo back\nchain --replace --autofree /inner\necho never\n").await;
    assert_eq!(world.lines, ["inner", "back", "inner"]);
}

#[tokio::test]
async fn a_script_that_chains_itself_ends() {
    for command in ["chain", "chain --replace"] {
        let mut world = Paper::default();
        world.files.insert("http://box/me".into(), format!("#!ipxe\n{command} /me\n").into_bytes());
        assert!(matches!(run(&mut world, "#!ipxe\nchain /me\n").await, Outcome::Failed(_)), "{command}");
    }
}

#[tokio::test]
async fn the_eleven_passes_of_an_init_script_end_in_a_reboot() {
    let script = "#!ipxe\nset attempts:int32 10\nset x:int32 0\n:pass\nset idx:int32 0\n:nic\n\
        isset ${net${idx}/mac} || goto passed\nifclose\niflinkwait --timeout 5000 net${idx} || goto next\n\
        dhcp net${idx} || goto next\nroute\n\
        chain --replace http://box/ipxe/boot.ipxe?uuid=${uuid}&mac=${net${idx}/mac:hexhyp} || goto next\n\
        :next\ninc idx && goto nic\n:passed\niseq ${x} ${attempts} && goto fail ||\ninc x\ngoto pass\n\
        :fail\necho failed\nsleep 5\nreboot\n";
    let mut world = Paper::default();
    assert_eq!(run(&mut world, script).await, Outcome::Reboot);
    assert_eq!(world.asked.len(), 11);
    assert_eq!(world.asked[0], "http://box/ipxe/boot.ipxe?uuid=u-1&mac=02-00-00-00-00-01");
    assert_eq!(world.slept, Duration::from_secs(5));
}

#[tokio::test]
async fn sanboot_starts_a_disk_that_starts() {
    let mut world = Paper { disk: true, ..Paper::default() };
    assert_eq!(run(&mut world, "#!ipxe\nsanboot --no-describe --drive 0x80\n").await, Outcome::Disk);
}

#[test]
fn an_embedded_script_is_found_behind_the_bare_magic() {
    let program = b"MZ\x90#!ipxe\0code\x01#!ipxe\necho hi\n\n\n\0tail";
    assert_eq!(embedded(program), Some(&b"#!ipxe\necho hi\n\n\n"[..]));
    assert_eq!(embedded(b"MZ#!ipxe\0"), None);
    assert_eq!(embedded(b"#!ipxe"), None);
    assert!(is_script(b"#!ipxe \n") && !is_script(b"#!ipxe"));
}

proptest! {
    #[test]
    fn any_text_ends(text in "(echo|set|inc|goto|chain|exit|\\$\\{|\\}|a|:a|&&|\\|\\||;|#| |\n){0,60}") {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(run(&mut Paper::default(), &text));
    }
}
