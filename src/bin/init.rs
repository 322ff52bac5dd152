//! PID 1 of the appliance, and its journal. The kernel must give it a console or /dev/null: an initramfs holds `/dev/console`.

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == pilotlight::init::PREPARE) {
        pilotlight::init::prepare();
        return ExitCode::SUCCESS;
    }
    if std::env::args_os().nth(1).is_some_and(|argument| argument == pilotlight::init::STICKS) {
        pilotlight::init::plugged();
        return ExitCode::SUCCESS;
    }
    if std::env::args_os().nth(1).is_some_and(|argument| argument == pilotlight::init::INSTALL) {
        return pilotlight::init::install(std::env::args().skip(2));
    }
    let arguments: Vec<_> = std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
    if std::process::id() != 1 {
        if arguments.get(1).is_some_and(|argument| argument == pilotlight::init::journal::ARGUMENT) {
            return pilotlight::init::journal::run(&arguments);
        }
        // Nobody is there to be told when stderr is closed.
        let _ = writeln!(std::io::stderr(), "init: I am the first process of the appliance and run as PID 1 only");
        return ExitCode::FAILURE;
    }
    pilotlight::init::run(&arguments)
}
