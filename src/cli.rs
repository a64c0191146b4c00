//! The command line.

use std::convert::Infallible;
use std::io::Write as _;
use std::path::PathBuf;

use clap::{ArgAction, CommandFactory, Parser, Subcommand};
use clap_mangen::Man;

use crate::client::servers::options::Action;
use crate::postgres::secret::Secret;

/// Takes PoWA snapshots of a fleet of PostgreSQL servers.
///
/// Without a command, runs the collector in the foreground until SIGTERM or SIGINT. SIGHUP re-reads the
/// configuration and the list of servers.
#[derive(Debug, Parser)]
#[command(name = "powa-collector", version, disable_help_flag = true)]
pub struct Arguments {
    /// Configuration file. Default: the first that exists of /etc/powa-collector.conf,
    /// ~/.config/powa-collector.conf, ~/.powa-collector.conf and ./powa-collector.conf
    #[arg(short, long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,

    /// Print help
    #[arg(short = '?', short_alias = 'h', long, action = ArgAction::Help, global = true)]
    help: Option<bool>,

    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Run the collector (the default)
    Run,
    /// Validate the configuration, try the repository and every server, and say what is missing
    ///
    /// Exit status: 0 when all is well, 1 when something is not, 2 when the configuration cannot be used.
    Check,
    /// Show how the collection of servers goes, as the collector at work says
    ///
    /// SERVER is an id, an alias or host:port of powa_servers. Without any, all servers are shown, those with a
    /// problem first.
    ///
    /// Exit status: 0 when all is well with them, 1 when it is not, 2 when the configuration cannot be used, 3
    /// when no collector answers.
    Status {
        #[arg(value_name = "SERVER")]
        servers: Vec<String>,
        /// Print JSON, an array of servers
        #[arg(long)]
        json: bool,
        /// Show it again each second, in place
        #[arg(long)]
        watch: bool,
    },
    /// Let the collector at work read its configuration and the servers again
    ///
    /// Exit status: 0 when it did, 1 when it could not, 2 when the configuration cannot be used, 3 when no
    /// collector answers.
    Reload,
    /// Ask the collector at work for a snapshot of these servers now
    ///
    /// Exit status: 0 when all are under way or, with --wait, stored; 1 when one is not; 2 when the configuration
    /// cannot be used; 3 when no collector answers.
    Snapshot {
        /// An id, an alias or host:port of powa_servers
        #[arg(value_name = "SERVER", required = true)]
        servers: Vec<String>,
        /// Wait until they are stored, or have failed
        #[arg(long)]
        wait: bool,
    },
    /// Let the collector at work read a server's catalogs with its next snapshot
    ///
    /// Exit status: 0 when it will, 1 when not, 2 when the configuration cannot be used, 3 when no collector
    /// answers.
    RefreshCatalogs {
        /// An id, an alias or host:port of powa_servers
        server: String,
        /// Only those of these databases. Default: of all
        #[arg(value_name = "DB")]
        databases: Vec<String>,
    },
    /// List, register, change and remove the servers that are collected
    ///
    /// What is said goes to standard error; standard output is for the list, and for the SQL that a server lacks.
    ///
    /// Exit status: 0 when it is done, 1 when not, 2 when the configuration or the command line cannot be used.
    Servers {
        /// How to connect to the repository, as a role that may change powa_servers, which the collector's need
        /// not. Default: repository.dsn of the configuration. Whoever is on this machine can see a password that
        /// is given here: put it into a password file (~/.pgpass)
        #[arg(long, value_parser = secret, global = true)]
        dsn: Option<Secret>,
        #[command(subcommand)]
        action: Action,
    },
    /// Ask the collector on this machine over HTTP (http.listen) whether it is at work
    ///
    /// For the health check of a container. It says nothing of the servers: see status and check.
    ///
    /// Exit status: 0 when it is at work, 1 when it is not or does not answer, 2 when the configuration cannot be
    /// used.
    Health,
    /// Print a script that completes commands in a shell
    Completions {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
    /// Take one snapshot of each server now, without a collector at work, and exit
    ///
    /// Exit status: 0 when all succeeded, 1 when one failed, 2 when the configuration cannot be used.
    Once {
        /// Only these servers: ids of powa_servers
        #[arg(value_name = "SRVID")]
        servers: Vec<i32>,
    },
}

fn secret(text: &str) -> Result<Secret, Infallible> {
    Ok(Secret::new(text))
}

/// What a command prints that is about the command line itself. None for any other command.
pub fn text(command: &Command) -> Option<String> {
    let mut text = Vec::new();
    match command {
        Command::Completions { shell } => {
            clap_complete::generate(*shell, &mut Arguments::command(), "powa-collector", &mut text);
        }
        Command::Man => manual(&mut text).expect("memory takes anything"),
        _ => return None,
    }
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// One page, with a section for each command.
fn manual(page: &mut Vec<u8>) -> std::io::Result<()> {
    let mut command = Arguments::command();
    command.build();
    let manual = Man::new(command.clone()).section("8");
    manual.render_title(page)?;
    manual.render_name_section(page)?;
    manual.render_synopsis_section(page)?;
    manual.render_description_section(page)?;
    manual.render_options_section(page)?;
    sections(page, &command, "COMMAND", &["config", "help"])?;
    manual.render_version_section(page)
}

/// A section for each command of a command, and for theirs. `told`: the options that are told already.
fn sections(page: &mut Vec<u8>, of: &clap::Command, title: &str, told: &[&str]) -> std::io::Result<()> {
    for command in of.get_subcommands().filter(|command| command.get_name() != "help") {
        let title = format!("{title} {}", command.get_name().to_uppercase());
        writeln!(page, ".SH \"{title}\"")?;
        let own = command.clone().mut_args(|arg| {
            let is_told = told.contains(&arg.get_id().as_str());
            arg.hide(is_told)
        });
        let manual = Man::new(own);
        let mut section = Vec::new();
        manual.render_synopsis_section(&mut section)?;
        manual.render_description_section(&mut section)?;
        manual.render_options_section(&mut section)?;
        page.extend(String::from_utf8_lossy(&section).replace(".SH ", ".SS ").bytes());
        let all: Vec<&str> = command.get_arguments().map(|arg| arg.get_id().as_str()).collect();
        sections(page, command, &title, &all)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_configuration_file_may_stand_before_or_after_the_command() {
        for line in [["powa-collector", "-c", "f", "run"], ["powa-collector", "run", "--config", "f"]] {
            let arguments = Arguments::try_parse_from(line).unwrap();
            assert_eq!(arguments.config, Some(PathBuf::from("f")));
            assert!(matches!(arguments.command, Some(Command::Run)));
        }
        assert!(Arguments::try_parse_from(["powa-collector"]).unwrap().command.is_none());
    }

    #[test]
    fn help_has_its_short_forms() {
        for flag in ["-?", "-h", "--help"] {
            let error = Arguments::try_parse_from(["powa-collector", flag]).unwrap_err();
            assert_eq!(error.kind(), clap::error::ErrorKind::DisplayHelp);
        }
    }
}
