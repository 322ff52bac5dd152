//! Slots: which system the box boots, and how that changes. Rules and codecs.
//!
//! # The disk
//!
//! | partition | holds |
//! | --- | --- |
//! | 3 `state`, 1 MiB | the records below, raw |
//! | 4 `slot-a`, 5 `slot-b` | `/vmlinuz`, `/initramfs` and `/arguments.env` (a GRUB environment block with `arguments`) in a file system that GRUB reads |
//! | 6 `recovery` | the same; changed only by flashing or on request |
//!
//! `board/grub.cfg` reads the records, boots one of the three and says so on the kernel's command line:
//!
//! ```text
//! pilotlight.slot=a|b|recovery pilotlight.why=committed|pending|fallback|default|recovery|operator pilotlight.try=0..3
//! pilotlight.part=<PARTUUID of what booted> pilotlight.stamp=<what GRUB wrote into its own disk> pilotlight.reset=1
//! ```
//!
//! `stamp` is missing when it could not be written; `reset` is there when somebody asked for a factory reset in GRUB's
//! menu. `why=fallback` with `try=0` beside a pending slot means that its tries could not be counted.
//!
//! # The state partition
//!
//! GRUB's `load_env` reads sectors by number, but its `save_env` writes to files alone (GRUB 2.06: "sparse file not
//! allowed"). So the partition is a tar archive, which GRUB reads as a file system: members of fixed size at fixed
//! sectors, whose headers nobody writes again. `tar tvf` lists it. Records stand 128 KiB apart, since a torn write of a
//! flash page must not reach the next.
//!
//! | sector | member | writer | fields, in this order |
//! | --- | --- | --- | --- |
//! | 256, 512 | `commit1`, `commit2` | init | `n` sequence, `s` committed slot, `next` pending slot or `none`, `mark` sequence at which it became pending, `peer` `good` or `bad`, `want` `normal` or `recovery`, `reset` `no` or `yes`, `va` `vb` versions, `failed` versions, `e` = `n` |
//! | 768, 1024 | `try1`, `try2` | GRUB; init formats and acknowledges | `c` count of writes 00–99, `q` the `mark` that the tries belong to, `t` tries 0–3, `k` boots since the last acknowledgement 0–7, `l` committed slot at that boot, `r` salt that init made, `stamp` of that boot, `d` = `c` |
//!
//! A record is one sector, written in place, and valid only when its first and last field agree. The commit record with
//! the higher sequence counts; the first valid try record counts.
//!
//! # The rules
//!
//! - A committed slot has no counter. A pending one has three tries, each counted before it is booted and only when
//!   reading back shows the count.
//! - What does not load is passed over in the same boot: committed slot, peer if it is good, recovery, peer, reboot.
//! - After five boots that init did not acknowledge, recovery is booted twice, then the peer, then it begins again.
//! - With both commit records unreadable, the slot that GRUB last booted as committed is booted; when that is unknown
//!   too, recovery: never a guess, which could be an older system or one that was never committed.
