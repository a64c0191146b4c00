//! Arguments, configuration, log, run, exit status.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use powa_collector::cli::{Arguments, Command};
use powa_collector::collector::{self, Ending};
use powa_collector::{check, config, descriptors, memory, once, signals, telemetry};

/// The configuration cannot be used.
const EXIT_CONFIGURATION: u8 = 2;

fn main() -> ExitCode {
    memory::set_up();
    let arguments = Arguments::parse();
    let log = telemetry::start();
    let loaded = match config::load(arguments.config.as_deref()) {
        Ok(loaded) => loaded,
        Err(error) => {
            log.tell_end(&error.to_string());
            return ExitCode::from(EXIT_CONFIGURATION);
        }
    };
    log.set(&loaded.configuration.log);
    let command = arguments.command.unwrap_or(Command::Run);
    if !matches!(command, Command::Check) {
        loaded.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    }
    let configuration = loaded.configuration;
    if let Err(error) = descriptors::raise() {
        tracing::warn!("the limit of open files stays as it is: {error}");
    }
    // One thread for all workers: what they do is hand bytes on, and two would do that by waking each other.
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            log.tell_end(&format!("start the runtime: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let end = log.clone();
    let outcome = runtime.block_on(async {
        match command {
            Command::Run => {
                let signals = signals::signals().context("handle signals")?;
                tracing::info!("powa-collector {} starts", env!("CARGO_PKG_VERSION"));
                let ending = collector::run(arguments.config, configuration, log, signals).await;
                Ok(match ending {
                    Ending::Stopped => ExitCode::SUCCESS,
                    Ending::Forced => ExitCode::FAILURE,
                })
            }
            Command::Check => Ok(exit_code(check::run(&configuration, &loaded.warnings).await)),
            Command::Once { servers } => Ok(exit_code(once::run(&configuration, &servers).await?)),
        }
    });
    // What is still under way was given its time; it must not hold up the end.
    runtime.shutdown_background();
    outcome.unwrap_or_else(|error: anyhow::Error| {
        end.tell_end(&format!("{error:#}"));
        ExitCode::FAILURE
    })
}

fn exit_code(is_good: bool) -> ExitCode {
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
