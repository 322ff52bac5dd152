//! Control groups: what is written where, so that a service's hunger is its own death and nobody else's.

/// Below this directory each service has a group of its own, named as it is.
pub const SERVICES_DIR: &str = "/sys/fs/cgroup/services";
/// What the groups above must hand down, in this order. Either may be missing in a kernel.
pub const CONTROLLERS: [&str; 2] = ["memory", "pids"];

/// What a service may take of the box.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Octets of memory, page cache included; beyond, the kernel kills all of the service.
    pub memory: u64,
    /// Threads and processes.
    pub tasks: u32,
}

impl Limits {
    /// `mebibytes` of memory and `tasks` threads.
    pub const fn new(mebibytes: u64, tasks: u32) -> Self {
        Self { memory: mebibytes << 20, tasks }
    }

    /// The file of the service's group and what is written to it, in order.
    ///
    /// Close below the limit the kernel takes page cache back and slows the service down; the gap is narrow, so that one that
    /// wants ever more dies within seconds. A group is killed as a whole:
    /// half a service is worse than none.
    ///
    /// Source: Linux, Documentation/admin-guide/cgroup-v2.rst.
    pub fn writes(self) -> [(&'static str, String); 4] {
        [
            ("memory.high", (self.memory / 16 * 15).to_string()),
            ("memory.max", self.memory.to_string()),
            ("memory.oom.group", "1".to_owned()),
            ("pids.max", self.tasks.to_string()),
        ]
    }
}

/// How many processes of a group the kernel has killed for want of memory, by its `memory.events`. Zero when the text says
/// nothing of it.
pub fn oom_kills(memory_events: &str) -> u64 {
    let value = |line: &str| line.strip_prefix("oom_kill ")?.trim().parse().ok();
    memory_events.lines().find_map(value).unwrap_or(0)
}

/// How many octets the processes of a group have made of their own, by its `memory.stat`.
pub fn anonymous(memory_stat: &str) -> Option<u64> {
    memory_stat.lines().find_map(|line| line.strip_prefix("anon ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn limits_are_files() {
        let written = Limits::new(64, 32).writes().map(|(file, value)| format!("{file}={value}"));
        assert_eq!(written, ["memory.high=62914560", "memory.max=67108864", "memory.oom.group=1", "pids.max=32"]);
    }

    #[test]
    fn kills_are_counted() {
        let events = "low 0\nhigh 12\nmax 7\noom 1\noom_kill 3\noom_group_kill 1\n";
        assert_eq!(oom_kills(events), 3);
        assert_eq!(oom_kills("oom_kill many\n"), 0);
    }

    #[test]
    fn what_is_a_groups_own_is_told_from_the_rest() {
        assert_eq!(anonymous("anon_thp 1\nanon 4096\nfile 7\n"), Some(4096));
        assert_eq!(anonymous("file 7\nanon many\n"), None);
    }

    proptest! {
        #[test]
        fn any_text_is_a_number(text in ".{0,200}") {
            let _ = (oom_kills(&text), anonymous(&text));
        }
    }
}
