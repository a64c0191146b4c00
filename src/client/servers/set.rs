//! `servers set`.

use serde_json::{Map, Value, json};

use super::administration::Administration;
use super::options::Set;
use super::{ServersError, called, check_names, password};
use crate::config::Configuration;
use crate::postgres::secret::Secret;
use crate::server::{self, Server, ServerId};

/// Tries a server with what is to change, where that matters to how it is read, and changes it then. It is locked only
/// for the change itself: its snapshots go on while it is tried.
pub async fn set(configuration: &Configuration, wanted: &Set) -> Result<bool, ServersError> {
    let fields = fields(wanted);
    let changes_password = wanted.password || wanted.password_stdin || wanted.no_password;
    if fields.is_empty() && !changes_password && wanted.extensions.is_empty() {
        return Err(ServersError::Usage(
            "nothing is given that is to change: see servers set --help".to_owned(),
        ));
    }
    let administration = Administration::open(configuration).await?;
    administration.may("UPDATE").await?;
    let old = administration.find(&wanted.server).await?;
    let mut new = changed(&old, wanted);
    check_names(&new, &administration.names().await?)?;
    if let Some(retention) = &wanted.retention {
        administration.check_retention(retention).await?;
    }
    if changes_password {
        new.password = new_password(wanted, &format!("{} on {}", new.username, new.name(false)))?;
    }

    let options = &configuration.servers;
    let is_reached_otherwise = match (options.given(&old), options.given(&new)) {
        (Ok(old), Ok(new)) => old != new,
        // What is wrong is said when it is tried.
        _ => true,
    };
    if is_reached_otherwise || !wanted.extensions.is_empty() {
        let plan = async |version: i32| {
            administration.begin().await?;
            let plan = async {
                administration.activate(old.id, &wanted.extensions).await?;
                administration.plan(old.id, version).await
            };
            let plan = plan.await;
            administration.roll_back().await?;
            plan
        };
        let is_good = administration.try_out(new.clone(), plan).await?;
        if !is_good && !wanted.force {
            eprintln!("not changed: see PROBLEM above; --force changes it all the same");
            return Ok(false);
        }
        // Where the deadline has come in the midst of that.
        administration.roll_back().await?;
    }

    administration.begin().await?;
    change(&administration, old.id, fields, changes_password.then_some(new.password.as_ref())).await?;
    administration.activate(old.id, &wanted.extensions).await?;
    let told = administration.commit().await?;
    eprintln!("{} is changed; {told}", called(&new));
    Ok(true)
}

/// What is to change, but for the password, as `powa_configure_server` takes it.
fn fields(wanted: &Set) -> Map<String, Value> {
    let alias =
        if wanted.no_alias { Some(Value::Null) } else { wanted.alias.as_ref().map(|alias| json!(alias)) };
    let fields = [
        ("alias", alias),
        ("hostname", wanted.hostname.as_ref().map(|host| json!(host))),
        ("port", wanted.port.map(|port| json!(port))),
        ("username", wanted.username.as_ref().map(|name| json!(name))),
        ("dbname", wanted.dbname.as_ref().map(|name| json!(name))),
        ("frequency", wanted.frequency.map(|seconds| json!(seconds))),
        ("retention", wanted.retention.as_ref().map(|text| json!(text))),
    ];
    fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

/// The server as it is to be, but for its password.
fn changed(old: &Server, wanted: &Set) -> Server {
    let text = |new: &Option<String>, old: &String| new.as_ref().unwrap_or(old).clone();
    Server {
        hostname: text(&wanted.hostname, &old.hostname),
        port: wanted.port.map_or(old.port, i32::from),
        username: text(&wanted.username, &old.username),
        dbname: text(&wanted.dbname, &old.dbname),
        frequency: wanted.frequency.map_or(old.frequency, server::period),
        alias: if wanted.no_alias { None } else { wanted.alias.clone().or_else(|| old.alias.clone()) },
        ..old.clone()
    }
}

fn new_password(wanted: &Set, whose: &str) -> Result<Option<Secret>, ServersError> {
    if wanted.no_password {
        return Ok(None);
    }
    if wanted.password_stdin { password::of_stdin() } else { password::of_known(whose) }.map(Some)
}

/// `password`: if it is to change, the new one, if there is to be one.
async fn change(
    administration: &Administration,
    id: ServerId,
    fields: Map<String, Value>,
    password: Option<Option<&Secret>>,
) -> Result<(), ServersError> {
    let client = administration.client();
    // PoWA makes a statement of what it is given, and one that fails is in the server's log with its text. So nothing is
    // left that can fail when the password comes.
    let table = administration.sql("LOCK TABLE {powa}.powa_servers IN ROW EXCLUSIVE MODE");
    let row = administration.sql(include_str!("../../../sql/repository/lock_registration.sql"));
    let configure = administration.sql(include_str!("../../../sql/repository/configure_server.sql"));
    let password = password.map(|password| {
        let value = password.map_or(Value::Null, |password| json!(password.reveal()));
        Map::from_iter([("password".to_owned(), value)])
    });
    let locking = async {
        client.batch_execute(&table).await?;
        client.query_opt(&row, &[&id.0]).await
    };
    administration.ask(locking).await?.ok_or(ServersError::Gone)?;
    for fields in [Some(fields), password].into_iter().flatten().filter(|fields| !fields.is_empty()) {
        let text = Value::Object(fields).to_string();
        let row = administration.ask(client.query_one(&configure, &[&id.0, &text])).await?;
        if !row.get::<_, bool>(0) {
            return Err(ServersError::Gone);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::{Args, Command, FromArgMatches};

    use super::*;

    fn wanted(arguments: &[&str]) -> Set {
        let command = Set::augment_args(Command::new("set"));
        let arguments = ["set", "1"].iter().chain(arguments).copied();
        Set::from_arg_matches(&command.try_get_matches_from(arguments).unwrap()).unwrap()
    }

    #[test]
    fn only_what_is_given_changes() {
        let old = Server {
            id: ServerId(1),
            hostname: "db1".into(),
            port: 5432,
            username: "powa".into(),
            password: Some(Secret::new("hunter2")),
            dbname: "powa".into(),
            frequency: Duration::from_secs(300),
            alias: Some("main".into()),
            is_registered: true,
        };
        let nothing = wanted(&[]);
        assert_eq!(changed(&old, &nothing), old);
        assert!(fields(&nothing).is_empty());

        let some = wanted(&["--no-alias", "--port", "5433", "--frequency", "-1"]);
        let new = changed(&old, &some);
        assert_eq!(new, Server { port: 5433, frequency: Duration::ZERO, alias: None, ..old.clone() });
        assert_eq!(Value::Object(fields(&some)), json!({ "alias": null, "port": 5433, "frequency": -1 }));

        let text = "a'b\"; drop table";
        let all = wanted(&[
            "--alias",
            text,
            "--hostname",
            text,
            "--username",
            text,
            "--dbname",
            text,
            "--retention",
            "1 day",
            "--no-password",
        ]);
        let expected = json!({ "alias": text, "hostname": text, "username": text, "dbname": text, "retention": "1 day" });
        assert_eq!(Value::Object(fields(&all)), expected);
        assert_eq!(changed(&old, &all).password, old.password, "it comes later");
    }
}
