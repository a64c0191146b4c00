//! `servers add`.

use super::administration::Administration;
use super::options::Add;
use super::{ServersError, called, check_names, password};
use crate::config::Configuration;
use crate::server::{self, Server, ServerId};

/// Registers a server and tries it in one transaction, which locks nothing that anybody else has use for while the server
/// is tried, and which ends without a trace when we do.
pub async fn add(configuration: &Configuration, wanted: &Add) -> Result<bool, ServersError> {
    let administration = Administration::open(configuration).await?;
    administration.may("INSERT").await?;
    let mut server = Server {
        // Until it has one of its own: this is the repository's, which has no name.
        id: ServerId(0),
        hostname: wanted.place.host.clone(),
        port: wanted.place.port.into(),
        username: wanted.username.clone(),
        password: None,
        dbname: wanted.dbname.clone(),
        frequency: server::period(wanted.frequency),
        alias: wanted.alias.clone(),
        is_registered: true,
    };
    check_names(&server, &administration.names().await?)?;
    if let Some(retention) = &wanted.retention {
        administration.check_retention(retention).await?;
    }
    let whose = format!("{} on {}", server.username, server.name(false));
    server.password = password::of_new(wanted.password_stdin, wanted.no_password, &whose)?;

    administration.begin().await?;
    server.id = register(&administration, &server, wanted).await?;
    administration.activate(server.id, &wanted.extensions).await?;
    let id = server.id;
    let plan = async |version: i32| administration.plan(id, version).await;
    let is_good = administration.try_out(server.clone(), plan).await?;
    if !is_good && !wanted.force {
        administration.roll_back().await?;
        eprintln!("not registered: see PROBLEM above; --force registers it all the same");
        return Ok(false);
    }
    let told = administration.commit().await?;
    let off = if wanted.frequency < 0 { ", and switched off" } else { "" };
    eprintln!("{} is registered{off}; {told}", called(&server));
    Ok(true)
}

async fn register(
    administration: &Administration,
    server: &Server,
    wanted: &Add,
) -> Result<ServerId, ServersError> {
    let client = administration.client();
    let register = administration.sql(include_str!("../../../sql/repository/register_server.sql"));
    let find = administration.sql("SELECT id FROM {powa}.powa_servers WHERE hostname = $1 AND port = $2");
    let password = server.password.as_ref().map(|password| password.reveal());
    let row = administration
        .ask(async {
            let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 8] = [
                &server.hostname,
                &server.port,
                &server.alias,
                &server.username,
                &password,
                &server.dbname,
                &wanted.frequency,
                &wanted.retention,
            ];
            client.query_one(&register, &parameters).await?;
            client.query_one(&find, &[&server.hostname, &server.port]).await
        })
        .await?;
    Ok(ServerId(row.get(0)))
}
