//! Which kernel modules to load, and in which order, from the index files that `depmod` writes (modules.dep(5)).

use std::collections::{BTreeMap, BTreeSet};

/// The modules of the running kernel: what each needs, and which hardware each is for.
#[derive(Clone, Debug, Default)]
pub struct Index {
    /// By name: the file, relative to the index, and the names of what it needs.
    modules: BTreeMap<String, (String, Vec<String>)>,
    /// Pattern over hardware aliases, and the module's name.
    aliases: Vec<(String, String)>,
}

impl Index {
    /// An index from the texts of `modules.dep`, `modules.softdep` and `modules.alias`. A line that makes no sense counts
    /// for nothing: what else the files say still holds.
    ///
    /// Of soft dependencies those to be loaded before count, where they name a module.
    pub fn parse(dep: &str, softdep: &str, alias: &str) -> Self {
        let mut index = Self::default();
        for line in dep.lines() {
            let Some((file, needs)) = line.split_once(':') else { continue };
            let needs = needs.split_whitespace().map(name_of).collect();
            index.modules.insert(name_of(file), (file.to_owned(), needs));
        }
        for line in softdep.lines() {
            let mut words = line.split_whitespace();
            if words.next() != Some("softdep") {
                continue;
            }
            let Some(module) = words.next() else { continue };
            let before = words.skip_while(|word| *word != "pre:").skip(1).take_while(|word| *word != "post:");
            if let Some((_, needs)) = index.modules.get_mut(&plain(module)) {
                needs.extend(before.map(plain));
            }
        }
        for line in alias.lines() {
            let words: Vec<_> = line.split_whitespace().collect();
            if let ["alias", pattern, module] = words.as_slice() {
                index.aliases.push(((*pattern).to_owned(), plain(module)));
            }
        }
        index
    }

    /// The names of the modules for the hardware that calls itself `modalias`, as sysfs shows it.
    pub fn matching<'a>(&'a self, modalias: &'a str) -> impl Iterator<Item = &'a str> {
        let fits = move |(pattern, _): &&(String, String)| matches(pattern.as_bytes(), modalias.as_bytes());
        self.aliases.iter().filter(fits).map(|(_, module)| module.as_str())
    }

    /// The files to load for module `name`, dependencies first, without those of `loaded`. Names and files as pairs; none
    /// when the index does not know `name`: it may be built in.
    pub fn plan<'a>(&'a self, name: &str, loaded: &BTreeSet<String>) -> Vec<(&'a str, &'a str)> {
        let mut plan = Vec::new();
        self.visit(&plain(name), loaded, &mut BTreeSet::new(), &mut plan);
        plan
    }

    fn visit<'a>(
        &'a self,
        name: &str,
        loaded: &BTreeSet<String>,
        seen: &mut BTreeSet<&'a str>,
        plan: &mut Vec<(&'a str, &'a str)>,
    ) {
        let Some((name, (file, needs))) = self.modules.get_key_value(name) else { return };
        // Seen before it is done: a circle ends here.
        if loaded.contains(name) || !seen.insert(name) {
            return;
        }
        for need in needs {
            self.visit(need, loaded, seen, plan);
        }
        plan.push((name, file));
    }
}

/// The name of the module in `file`, as the kernel writes it.
fn name_of(file: &str) -> String {
    let base = file.rsplit('/').next().unwrap_or(file);
    plain(base.split('.').next().unwrap_or(base))
}

/// The kernel takes `-` and `_` in a module's name for the same.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

/// Whether `text` fits a shell pattern of `*`, `?` and `[…]` (fnmatch(3) without flags; hardware aliases quote nothing).
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where to go on when what follows the last star does not fit: the star takes one octet more.
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        let next = match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, t));
                p += 1;
                continue;
            }
            Some(b'?') => Some(p + 1),
            Some(b'[') => class(&pattern[p + 1..], text[t]).and_then(|(fits, length)| fits.then_some(p + 1 + length)),
            Some(octet) if *octet == text[t] => Some(p + 1),
            Some(_) | None => None,
        };
        if let Some(next) = next {
            p = next;
            t += 1;
        } else if let Some((after_star, from)) = retry {
            retry = Some((after_star, from + 1));
            p = after_star;
            t = from + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|octet| *octet == b'*')
}

/// Whether `octet` is in the class that begins after its `[`, and the class' length with its `]`; `None` without one.
fn class(pattern: &[u8], octet: u8) -> Option<(bool, usize)> {
    let end = pattern.iter().position(|octet| *octet == b']')?;
    let (negated, members) = match pattern[..end].split_first() {
        Some((b'!', rest)) => (true, rest),
        _ => (false, &pattern[..end]),
    };
    let mut rest = members;
    let mut within = false;
    loop {
        rest = match rest {
            [] => break,
            [from, b'-', to, rest @ ..] => {
                within |= (*from..=*to).contains(&octet);
                rest
            }
            [single, rest @ ..] => {
                within |= *single == octet;
                rest
            }
        };
    }
    Some((within != negated, end + 1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DEP: &str = "kernel/net/virtio_net.ko: kernel/net/failover.ko kernel/drivers/virtio.ko\n\
        kernel/net/failover.ko:\n\
        kernel/drivers/virtio.ko: kernel/drivers/virtio-ring.ko.xz\n\
        kernel/drivers/virtio-ring.ko.xz:\n\
        kernel/fs/ext4.ko: kernel/fs/jbd2.ko\n\
        kernel/fs/jbd2.ko:\n\
        kernel/crypto/crc32c_generic.ko:\n\
        a.ko: b.ko\nb.ko: a.ko\n\
        nonsense\n";
    const SOFT: &str = "# comment\nsoftdep ext4 pre: crc32c-generic unknown post: a\n";
    const ALIAS: &str =
        "alias virtio:d00000001v* virtio_net\nalias pci:v00008086d*sv*sd*bc02sc00i* virtio-net\nalias x\n";

    fn index() -> Index {
        Index::parse(DEP, SOFT, ALIAS)
    }

    fn names(index: &Index, name: &str, loaded: &[&str]) -> Vec<String> {
        let loaded = loaded.iter().map(|name| (*name).to_owned()).collect();
        index.plan(name, &loaded).into_iter().map(|(name, _)| name.to_owned()).collect()
    }

    #[test]
    fn a_module_comes_after_all_that_it_needs() {
        let index = index();
        assert_eq!(names(&index, "virtio_net", &[]), ["failover", "virtio_ring", "virtio", "virtio_net"]);
        assert_eq!(names(&index, "virtio-net", &["virtio"]), ["failover", "virtio_net"]);
        assert_eq!(names(&index, "ext4", &[]), ["jbd2", "crc32c_generic", "ext4"]);
        assert_eq!(index.plan("virtio_ring", &BTreeSet::new()), [("virtio_ring", "kernel/drivers/virtio-ring.ko.xz")]);
    }

    #[test]
    fn a_circle_ends_and_an_unknown_name_is_nothing() {
        assert_eq!(names(&index(), "a", &[]), ["b", "a"]);
        assert!(names(&index(), "builtin", &[]).is_empty());
    }

    #[test]
    fn hardware_names_its_modules() {
        let index = index();
        let found = |alias| index.matching(alias).collect::<Vec<_>>();
        assert_eq!(found("virtio:d00000001v00001AF4"), ["virtio_net"]);
        assert_eq!(found("pci:v00008086d00001234sv0sd0bc02sc00i00"), ["virtio_net"]);
        assert!(found("pci:v00008086d00001234sv0sd0bc01sc00i00").is_empty());
    }

    #[test]
    fn patterns_are_those_of_the_shell() {
        let fits = |pattern: &str, text: &str| matches(pattern.as_bytes(), text.as_bytes());
        assert!(fits("", "") && fits("*", "") && fits("a*c", "abbc") && fits("*b*", "abc") && fits("a?c", "abc"));
        assert!(!fits("a*c", "abcd") && !fits("?", "") && !fits("a", "") && !fits("", "a"));
        assert!(fits("usb:v*d0[0-4]*", "usb:v1d03x") && !fits("usb:v*d0[0-4]*", "usb:v1d05x"));
        assert!(fits("[!a-c]", "d") && !fits("[!a-c]", "b") && !fits("[ab", "a"));
    }

    proptest! {
        #[test]
        fn any_index_and_any_alias_are_survived(
            dep in "[a-c:. \n/-]{0,60}", soft in "(softdep [a-c] pre: [a-c]\n){0,3}", alias in "(alias [a*?\\[\\]!-]{0,9} [a-c]\n){0,4}",
            hardware in "[a-c\\[\\]*-]{0,12}",
        ) {
            let index = Index::parse(&dep, &soft, &alias);
            for module in index.matching(&hardware) {
                let plan = index.plan(module, &BTreeSet::new());
                let unique: BTreeSet<_> = plan.iter().collect();
                prop_assert_eq!(unique.len(), plan.len());
            }
        }

        #[test]
        fn a_pattern_without_signs_fits_itself_alone(a in "[a-z0-9:]{0,12}", b in "[a-z0-9:]{0,12}") {
            prop_assert_eq!(matches(a.as_bytes(), b.as_bytes()), a == b);
        }
    }
}
