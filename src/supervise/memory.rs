//! The machine's memory, as the kernel counts it.

use serde::{Deserialize, Serialize};

/// The machine's memory; all in octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// What the kernel has to give.
    pub total: u64,
    /// What it could still give without taking it from somebody.
    pub available: u64,
    /// What programs have made of their own, PID 1 included.
    pub anonymous: u64,
    /// Files' pages that programs have mapped, their own code above all; one that several map counts once.
    pub mapped: u64,
}

impl Memory {
    /// What a `/proc/meminfo` says; `None` where it lacks one of the figures.
    ///
    /// Source: Linux, Documentation/filesystems/proc.rst.
    pub fn parse(meminfo: &str) -> Option<Self> {
        let figure = |name: &str| {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
        };
        Some(Self {
            total: figure("MemTotal")?,
            available: figure("MemAvailable")?,
            anonymous: figure("AnonPages")?,
            mapped: figure("Mapped")?,
        })
    }

    /// What all programs together keep in memory: the sum of their proportional set sizes.
    pub const fn programs(&self) -> u64 {
        self.anonymous.saturating_add(self.mapped)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn figures_are_found_by_their_whole_names() {
        let text = "MemTotal:         224152 kB\nMemFree: 1 kB\nMemAvailable:     129000 kB\nAnonPages:         30000 kB\n\
                    Mapped:             9000 kB\nMappedElsewhere: 4 kB\n";
        let memory = Memory::parse(text).unwrap();
        assert_eq!((memory.total, memory.available), (224_152 << 10, 129_000 << 10));
        assert_eq!(memory.programs(), 39_000 << 10);
        assert_eq!(Memory::parse(&text.replace("Mapped:", "Drawn:")), None);
        assert_eq!(Memory::parse(&text.replace("30000 kB", "30000")), None);
    }

    proptest! {
        #[test]
        fn any_text_is_memory_or_none(text in "((MemTotal|MemAvailable|AnonPages|Mapped): *[0-9]{0,20} kB\n|.{0,20}\n){0,9}") {
            let _ = Memory::parse(&text).map(|memory| memory.programs());
        }
    }
}
