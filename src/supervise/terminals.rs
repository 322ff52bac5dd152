//! Which terminals the console has.

/// Where the kernel says to which terminals it writes its own messages.
pub const ACTIVE: &str = "/sys/class/tty/console/active";
/// The screen that gets the kernel's messages once the console has the first one: Alt-F2 shows them.
pub const MESSAGES: u8 = 2;
/// Most terminals.
const MOST: usize = 4;
/// Longest name of one.
const LONGEST: usize = 16;

/// What a terminal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A screen with a keyboard.
    Screen,
    /// A line to somewhere: a serial port, a BMC, a hypervisor.
    Serial,
}

/// A terminal of the console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terminal {
    /// Its device below /dev.
    pub name: String,
    /// What it is.
    pub kind: Kind,
}

impl Terminal {
    /// Its device.
    pub fn path(&self) -> String {
        format!("/dev/{}", self.name)
    }
}

/// The first screen, which need not exist, and every serial line among `active`, the text of [`ACTIVE`].
pub fn terminals(active: &str) -> Vec<Terminal> {
    let mut all = vec![Terminal { name: "tty1".to_owned(), kind: Kind::Screen }];
    for name in active.split_whitespace().filter(|name| is_line(name)) {
        if all.len() < MOST && !all.iter().any(|one| one.name == name) {
            all.push(Terminal { name: name.to_owned(), kind: Kind::Serial });
        }
    }
    all
}

/// `ttyS0`, `ttyAMA0`, `hvc0`; not `tty0` and the like, which are screens, nor anything that is no name of a device.
fn is_line(name: &str) -> bool {
    let rest = name.strip_prefix("tty").or_else(|| name.strip_prefix("hvc"));
    let screen = name.strip_prefix("tty").is_some_and(|number| number.bytes().all(|octet| octet.is_ascii_digit()));
    let plain = name.len() <= LONGEST && name.bytes().all(|octet| octet.is_ascii_alphanumeric());
    plain && !screen && rest.is_some_and(|rest| !rest.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(active: &str) -> Vec<String> {
        terminals(active).into_iter().map(|terminal| terminal.name).collect()
    }

    #[test]
    fn the_first_screen_and_the_kernels_lines() {
        assert_eq!(names("tty0 ttyS0\n"), ["tty1", "ttyS0"]);
        assert_eq!(names("ttyAMA0 hvc0 tty0 ttyS0 ttyS1"), ["tty1", "ttyAMA0", "hvc0", "ttyS0"]);
        assert_eq!(names(""), ["tty1"]);
        assert_eq!(names("tty tty2 ../sda hvc ttyS0/.. netcon0 sda ttyS0 ttyS0"), ["tty1", "ttyS0"]);
    }

    proptest! {
        #[test]
        fn any_text_gives_a_few_plain_names(active: String) {
            let all = terminals(&active);
            prop_assert!(all.len() <= MOST);
            prop_assert!(all.iter().all(|one| one.name.bytes().all(|octet| octet.is_ascii_alphanumeric())));
        }
    }
}
