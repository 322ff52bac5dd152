//! `pilotlight`: the provider, its services one by one, and the lab.

use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use pilotlight::app::{self, ServiceName};
use pilotlight::bmc::cli::BmcArgs;
use pilotlight::config::{self, Config, Flags};
use pilotlight::flash;
use pilotlight::lab;
use pilotlight::omni::proxy;
use pilotlight::sys;
use pilotlight::telemetry::{self, Output, Style};
use pilotlight::update::cli::BundleArgs;

/// The small box in the rack that lights its servers: a bare-metal infrastructure provider for Omni.
#[derive(Parser)]
#[command(version, propagate_version = true, arg_required_else_help = true, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the provider: every service in one process, under the Go provider's flags
    ///
    /// The service account key is read from OMNI_SERVICE_ACCOUNT_KEY; make one with `omnictl infraprovider create ID`.
    Provider(Box<Flags>),
    /// Run one service as a process of its own, as the appliance's init does
    Service {
        /// Which one
        name: ServiceName,
        #[command(flatten)]
        flags: Box<Flags>,
    },
    /// Simulate a rack: an Omni, machines, BMCs and agents on loopback, with the real provider between them
    ///
    /// Needs neither root nor a network. Open the page that it prints.
    Lab(lab::Args),
    /// Ask one BMC over IPMI: power state, on, off, cycle, one-time PXE boot
    Bmc(BmcArgs),
    /// Write the appliance's image to a disk or stick, and read it back
    Flash(flash::Args),
    /// Make and inspect signed update bundles, and the state partition of a new disk
    Bundle(BundleArgs),
    /// Play the operating system of a virtual machine in the end-to-end test
    #[command(hide = true)]
    Guest,
}

fn main() -> ExitCode {
    let result = run(Cli::parse().command);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Provider(flags) => {
            let (config, output) = configure(*flags, true, |debug| Output::Stderr(Style::choose(debug)))?;
            telemetry::init(output, config.debug, "provider")?;
            runtime()?.block_on(app::provider(config))
        }
        Command::Service { name, flags } => {
            let output = |debug| Output::JournalOr(Style::choose(debug));
            // A box that nobody has set up yet is no box that fails.
            let is_set_up = !flags.go.omni_api_endpoint.is_empty() || config::service_account_key().is_some();
            let (config, output) = configure(*flags, name.talks_to_omni() && is_set_up, output)?;
            telemetry::init(output, config.debug, name.as_str())?;
            sys::seccomp::lock().context("the process can't be locked down")?;
            runtime()?.block_on(app::service(name, config))
        }
        Command::Lab(args) => runtime()?.block_on(lab::run(args)),
        Command::Bmc(args) => runtime()?.block_on(pilotlight::bmc::cli::run(args)),
        Command::Flash(args) => flash::run(&args),
        Command::Bundle(args) => pilotlight::update::cli::run(args),
        Command::Guest => runtime()?.block_on(lab::guest::run(config::variable(lab::guest::CONSENT))),
    }
}

fn configure(
    mut flags: Flags,
    talks_to_omni: bool,
    output: impl Fn(bool) -> Output,
) -> anyhow::Result<(Config, Output)> {
    flags.service_account_key = config::service_account_key();
    flags.proxy = proxy::Variables::read(|name| config::variable(name)?.into_string().ok());
    let config = if talks_to_omni { Config::new(&flags)? } else { Config::without_omni(&flags)? };
    let output = output(config.debug);
    Ok((config, output))
}

/// Two workers: the box is small, and memory counts.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

#[allow(clippy::print_stderr, reason = "what the person at the terminal asked for did not happen")]
fn complain(error: &anyhow::Error) {
    eprintln!("error: {error:#}");
}
