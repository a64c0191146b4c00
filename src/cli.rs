//! The command line.

use std::path::PathBuf;

use clap::{ArgAction, Parser, Subcommand};

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
    /// Take one snapshot of each server now and exit
    ///
    /// Exit status: 0 when all succeeded, 1 when one failed, 2 when the configuration cannot be used.
    Once {
        /// Only these servers: ids of powa_servers
        #[arg(value_name = "SRVID")]
        servers: Vec<i32>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

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
