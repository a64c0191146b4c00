//! Arguments, configuration, log, run, exit status.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use powa_collector::cli::{self, Arguments, Command};
use powa_collector::client::{self, ClientError, Display, servers};
use powa_collector::collector::{self, Ending};
use powa_collector::{check, config, descriptors, memory, once, signals, telemetry};

/// The configuration or the command line cannot be used.
const EXIT_USAGE: u8 = 2;
/// No collector answers.
const EXIT_NOBODY: u8 = 3;

fn main() -> ExitCode {
    memory::set_up();
    let arguments = Arguments::parse();
    let command = arguments.command.unwrap_or(Command::Run);
    if let Some(text) = cli::text(&command) {
        return match client::print(&text) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("powa-collector: write the output: {error}");
                ExitCode::FAILURE
            }
        };
    }
    let log = telemetry::start();
    let loaded = match config::load(arguments.config.as_deref()) {
        Ok(loaded) => loaded,
        Err(error) => {
            log.tell_end(&error.to_string());
            return ExitCode::from(EXIT_USAGE);
        }
    };
    log.set(&loaded.configuration.log);
    if matches!(command, Command::Run | Command::Once { .. }) {
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
            Command::Status { servers, json, watch } => {
                asked(client::status(&configuration, &servers, Display { json, watch }).await)
            }
            Command::Reload => asked(client::reload(&configuration).await),
            Command::Snapshot { servers, wait } => {
                asked(client::snapshot(&configuration, &servers, wait).await)
            }
            Command::RefreshCatalogs { server, databases } => {
                asked(client::refresh_catalogs(&configuration, &server, &databases).await)
            }
            Command::Servers { dsn, action } => {
                match servers::run(configuration, dsn.as_ref(), &action).await {
                    Ok(is_done) => Ok(exit_code(is_done)),
                    Err(error) if error.is_usage() => {
                        eprintln!("powa-collector: {error}");
                        Ok(ExitCode::from(EXIT_USAGE))
                    }
                    // As it says it: what is behind it may be rows.
                    Err(error) => Err(anyhow::Error::msg(error.to_string())),
                }
            }
            Command::Health => {
                client::health::run(configuration.http_listen).await?;
                Ok(ExitCode::SUCCESS)
            }
            Command::Completions { .. } | Command::Man => unreachable!("printed above"),
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

/// How a command ended that asks a collector.
fn asked(outcome: Result<bool, ClientError>) -> anyhow::Result<ExitCode> {
    match outcome {
        Ok(is_good) => Ok(exit_code(is_good)),
        Err(error) if error.is_nobody_there() => {
            eprintln!("powa-collector: {error}");
            Ok(ExitCode::from(EXIT_NOBODY))
        }
        Err(error) => Err(error.into()),
    }
}

fn exit_code(is_good: bool) -> ExitCode {
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
