//! What Omni is told of this box's troubles: one text, empty while all is well.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::images::{AssetPath, Images, SchematicId, Unavailable};
use crate::machine::PowerState;
use crate::status::{Service, Snapshot};

/// The text changes no more often than this: it is for people, and each change is a write in Omni.
pub(super) const PACE: Duration = Duration::from_secs(5);
/// The longest cause that is quoted.
const MAX_CAUSE: usize = 300;

/// The troubles in `snapshot`, of the other `services`, and `images`, what keeps boot images from us.
///
/// A single BMC that does not answer is its machine's trouble; half of them are the box's.
pub(super) fn text(snapshot: &Snapshot, services: &[Service], images: &str) -> String {
    let mut troubles = Vec::new();
    for service in services.iter().filter(|service| !service.up) {
        troubles.push(format!("{} does not serve: {}", service.name, cut(&service.detail)));
    }
    let managed = snapshot.machines.iter().filter(|machine| !machine.bmc.is_empty());
    let silent = managed.clone().filter(|machine| machine.power == PowerState::Unknown && !machine.trouble.is_empty());
    let (managed, silent): (usize, Vec<_>) = (managed.count(), silent.collect());
    if let Some(first) = silent.first()
        && silent.len() * 2 >= managed
    {
        let (count, at) = (silent.len(), &first.bmc);
        troubles.push(format!("{count} of {managed} BMCs do not answer, {at} for one: {}", cut(&first.trouble)));
    }
    if !images.is_empty() {
        troubles.push(format!("boot images are not at hand: {}", cut(images)));
    }
    troubles.join("; ")
}

fn cut(text: &str) -> String {
    text.chars().take(MAX_CAUSE).collect()
}

/// Keeps `health` at the text of the newest snapshot until `cancel`, with `pace` at least between two looks.
pub(super) async fn keep(
    health: watch::Sender<String>,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    mut services: watch::Receiver<Vec<Service>>,
    mut images: watch::Receiver<String>,
    pace: Duration,
    cancel: CancellationToken,
) {
    loop {
        let next = text(&snapshots.borrow_and_update(), &services.borrow_and_update(), &images.borrow_and_update());
        let changed = health.send_if_modified(|text| {
            let changed = *text != next;
            text.clone_from(&next);
            changed
        });
        match (changed, next.is_empty()) {
            (true, false) => tracing::warn!(trouble = next, "Omni is told of a trouble"),
            (true, true) => tracing::info!("Omni is told that all is well"),
            (false, _) => {}
        }
        // Cancel-safe: all arms only wait.
        tokio::select! {
            () = cancel.cancelled() => return,
            Ok(()) = snapshots.changed() => {}
            Ok(()) = services.changed() => {}
            Ok(()) = images.changed() => {}
            else => return cancel.cancelled().await,
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(pace) => {}
        }
    }
}

/// Boot images whose last failure can be seen; the next success ends it.
pub(super) struct Observed {
    /// Where they come from.
    pub images: Arc<dyn Images>,
    /// Why the last one could not be had, or nothing.
    pub trouble: watch::Sender<String>,
}

impl Observed {
    fn note<T>(&self, result: Result<T, Unavailable>) -> Result<T, Unavailable> {
        let next = result.as_ref().err().map_or_else(String::new, ToString::to_string);
        self.trouble.send_if_modified(|text| std::mem::replace(text, next.clone()) != next);
        result
    }
}

#[async_trait]
impl Images for Observed {
    async fn schematic(&self, yaml: &str) -> Result<SchematicId, Unavailable> {
        self.note(self.images.schematic(yaml).await)
    }

    async fn text(&self, path: &AssetPath) -> Result<String, Unavailable> {
        self.note(self.images.text(path).await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::MachineId;
    use crate::status::{Machine, Stage};

    fn machine(number: u8, power: PowerState, trouble: &str) -> Machine {
        let id: MachineId = format!("4c4c4544-0000-4000-8000-{number:012}").parse().unwrap();
        Machine {
            id,
            stage: Stage::Ready,
            power,
            agent: false,
            boot_mode: String::new(),
            verdict: String::new(),
            decided_at: String::new(),
            next_attempt: None,
            trouble: trouble.into(),
            mac: String::new(),
            address: String::new(),
            bmc: format!("10.0.0.{number}:623"),
            cluster: String::new(),
            timeline: Vec::new(),
        }
    }

    #[test]
    fn half_of_the_bmcs_are_a_trouble_of_the_box_and_one_of_many_is_not() {
        let silent = |number| machine(number, PowerState::Unknown, "no answer");
        let fine = |number| machine(number, PowerState::On, "");
        let of = |machines| text(&Snapshot { machines, ..Snapshot::default() }, &[], "");
        assert_eq!(of(vec![]), "");
        assert_eq!(of(vec![silent(1), fine(2), fine(3)]), "");
        assert_eq!(of(vec![silent(1), fine(2)]), "1 of 2 BMCs do not answer, 10.0.0.1:623 for one: no answer");
        // Not asked yet is not silent.
        assert_eq!(of(vec![machine(1, PowerState::Unknown, "")]), "");
        // Nor is a machine without a BMC.
        assert_eq!(of(vec![Machine { bmc: String::new(), ..silent(1) }]), "");
    }

    #[test]
    fn services_and_images_are_told_too() {
        let services = vec![
            Service { name: "dhcp".into(), up: false, detail: "port 67 is taken".into() },
            Service { name: "tftp".into(), up: true, detail: "port 69".into() },
        ];
        let text = text(&Snapshot::default(), &services, &"x".repeat(10_000));
        assert!(text.starts_with("dhcp does not serve: port 67 is taken; boot images are not at hand: xxx"), "{text}");
        assert!(text.len() < 1_000);
    }

    struct Flaky(std::sync::atomic::AtomicBool);

    #[async_trait]
    impl Images for Flaky {
        async fn schematic(&self, _: &str) -> Result<SchematicId, Unavailable> {
            match self.0.load(std::sync::atomic::Ordering::Relaxed) {
                true => Err(Unavailable { reason: "the factory is gone".into() }),
                false => Ok("0".repeat(64).parse().unwrap()),
            }
        }

        async fn text(&self, _: &AssetPath) -> Result<String, Unavailable> {
            Ok(String::new())
        }
    }

    #[tokio::test]
    async fn omni_hears_of_a_failed_image_and_of_its_end() {
        let flaky = Arc::new(Flaky(true.into()));
        let (trouble, images) = watch::channel(String::new());
        let observed = Observed { images: flaky.clone(), trouble };
        let (health, mut heard) = watch::channel(String::new());
        let (_snapshots, snapshots) = watch::channel(Arc::new(Snapshot::default()));
        let cancel = CancellationToken::new();
        let task = tokio::spawn(keep(
            health,
            snapshots,
            watch::channel(Vec::new()).1,
            images,
            Duration::from_millis(1),
            cancel.clone(),
        ));
        assert!(observed.schematic("x").await.is_err());
        heard.changed().await.unwrap();
        assert_eq!(*heard.borrow_and_update(), "boot images are not at hand: the factory is gone");
        flaky.0.store(false, std::sync::atomic::Ordering::Relaxed);
        observed.schematic("x").await.unwrap();
        heard.changed().await.unwrap();
        assert_eq!(*heard.borrow_and_update(), "");
        cancel.cancel();
        task.await.unwrap();
    }
}
