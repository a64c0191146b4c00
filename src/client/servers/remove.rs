//! `servers remove`.

use std::io::{self, BufRead, IsTerminal};

use super::administration::Administration;
use super::options::Remove;
use super::{ServersError, called};
use crate::config::Configuration;

/// Switches a server off, or deletes it.
pub async fn remove(configuration: &Configuration, wanted: &Remove) -> Result<bool, ServersError> {
    // Before the repository is asked: whether there is a terminal does not depend on it.
    if wanted.purge && !wanted.yes && !io::stdin().is_terminal() {
        let reason = "there is no terminal to ask on whether the history is to be deleted: give --yes";
        return Err(ServersError::Usage(reason.to_owned()));
    }
    let administration = Administration::open(configuration).await?;
    administration.may(if wanted.purge { "DELETE" } else { "UPDATE" }).await?;
    let server = administration.find(&wanted.server).await?;
    let (name, id) = (called(&server), server.id.0);
    if !wanted.purge {
        administration.begin().await?;
        let deactivate = administration.sql("SELECT {powa}.powa_deactivate_server($1)");
        let row = administration.ask(administration.client().query_one(&deactivate, &[&id])).await?;
        if !row.get::<_, bool>(0) {
            return Err(ServersError::Gone);
        }
        let told = administration.commit().await?;
        eprintln!("{name} is switched off, and its history stays (--purge deletes both); {told}");
        return Ok(true);
    }
    if !wanted.yes && !is_meant(&format!("Delete {name} and its whole history?"))? {
        eprintln!("nothing is deleted");
        return Ok(false);
    }
    administration.begin().await?;
    administration.purge(server.id).await?;
    let told = administration.commit().await?;
    eprintln!("{name} is deleted, with its history; {told}");
    Ok(true)
}

/// Asks on the terminal.
fn is_meant(question: &str) -> io::Result<bool> {
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
}
