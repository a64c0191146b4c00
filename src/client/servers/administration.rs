//! A session with the repository that changes which servers there are.

use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::Error;
use tokio_postgres::error::SqlState;

use super::ServersError;
use crate::check::findings::Findings;
use crate::check::one_server;
use crate::check::setup::Setup;
use crate::client::channel::Channel;
use crate::client::{ClientError, SESSION, find};
use crate::config::{Configuration, Timeouts};
use crate::fleet::Means;
use crate::postgres::extension::{in_schema, quote_identifier};
use crate::postgres::repository::{Object, Repository};
use crate::postgres::session::ends_connection;
use crate::postgres::text::causes;
use crate::server::{self, Name, Server, ServerId};
use crate::snapshot::plan::{self, Plan};
use crate::snapshot::{self, About};

/// What comes with every server, and is never activated by itself: PoWA 4 would deactivate `powa` by that.
const ALWAYS_ACTIVE: [&str; 2] = ["powa", "pg_stat_statements"];

/// A transaction may idle for so much longer than a server is tried.
const SPARE: Duration = Duration::from_secs(60);

/// The session, which ends with its transaction when this is dropped.
pub struct Administration {
    client: Object,
    about: About,
    means: Means,
    timeouts: Timeouts,
    configuration: Configuration,
}

impl Administration {
    pub async fn open(configuration: &Configuration) -> Result<Self, ServersError> {
        let timeouts = configuration.settings.timeouts;
        let repository = Repository::new(configuration.repository.clone(), 1, timeouts.connect);
        let client = repository.question_connection().await?;
        let about = timeout(timeouts.query, snapshot::about(&client, SESSION)).await;
        let about = about.map_err(|_| ServersError::Deadline(timeouts.query))??;
        let means = Means::new(configuration, repository, None);
        Ok(Self { client, about, means, timeouts, configuration: configuration.clone() })
    }

    pub fn client(&self) -> &Object {
        &self.client
    }

    pub fn about(&self) -> &About {
        &self.about
    }

    /// A statement of ours, with PoWA's schema in it.
    pub fn sql(&self, statement: &str) -> String {
        in_schema(statement, &self.about.powa.schema)
    }

    /// A short question.
    pub async fn ask<T>(&self, asking: impl Future<Output = Result<T, Error>>) -> Result<T, ServersError> {
        self.within(self.timeouts.query, asking).await
    }

    async fn within<T>(
        &self,
        deadline: Duration,
        asking: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, ServersError> {
        match timeout(deadline, asking).await {
            Ok(answer) => answer.map_err(|error| self.failure(error)),
            Err(_) => Err(ServersError::Deadline(deadline)),
        }
    }

    fn failure(&self, error: Error) -> ServersError {
        let is = |state: &SqlState| error.code() == Some(state);
        if is(&SqlState::INSUFFICIENT_PRIVILEGE) {
            return self.denied(causes(&error));
        }
        if is(&SqlState::LOCK_NOT_AVAILABLE) {
            return ServersError::Busy;
        }
        if is(&SqlState::UNIQUE_VIOLATION) {
            let constraint = error.as_db_error().and_then(|told| told.constraint()).unwrap_or_default();
            let what = if constraint.contains("alias") { "alias" } else { "host and port" };
            return ServersError::Taken(format!("another server has this {what}"));
        }
        ServersError::Connection(error)
    }

    fn denied(&self, reason: String) -> ServersError {
        let role = quote_identifier(&self.configuration.repository.user);
        let who = if self.about.powa.version.is_5() {
            "a superuser, or a member of powa_admin"
        } else {
            "a superuser, or the owner of PoWA's tables"
        };
        ServersError::Denied { role, reason, who }
    }

    /// Makes sure, before anything is asked of anybody, that the role may do this to the list of servers.
    ///
    /// # Errors
    /// When it may not.
    pub async fn may(&self, privilege: &str) -> Result<(), ServersError> {
        let statement = include_str!("../../../sql/repository/may_change_servers.sql");
        let row = self.ask(self.client.query_one(statement, &[&privilege])).await?;
        if row.get(0) { Ok(()) } else { Err(self.denied(format!("no right to {privilege} on powa_servers"))) }
    }

    /// What the servers are called.
    pub async fn names(&self) -> Result<Vec<Name>, ServersError> {
        self.ask(server::names(&self.client, &self.about.powa.schema)).await
    }

    /// The server that somebody means.
    pub async fn find(&self, name: &str) -> Result<Server, ServersError> {
        let id = find(name, &self.names().await?)?;
        let server = self.ask(server::one(&self.client, &self.about.powa.schema, id)).await?;
        server.ok_or(ServersError::Gone)
    }

    /// Makes sure that a text is an interval, and not one by which all history would be too old.
    pub async fn check_retention(&self, text: &str) -> Result<(), ServersError> {
        let statement = "SELECT $1::pg_catalog.text::pg_catalog.interval > '0 s'::pg_catalog.interval";
        let wrong = |reason: &str| Err(ServersError::Usage(format!("--retention {text:?}: {reason}")));
        match self.ask(self.client.query_one(statement, &[&text])).await {
            Ok(row) if row.get(0) => Ok(()),
            Ok(_) => wrong("it must be more than nothing"),
            // Class 22: data exceptions.
            Err(ServersError::Connection(error))
                if error.code().is_some_and(|code| code.code().starts_with("22")) =>
            {
                wrong("not an interval of PostgreSQL's, as in \"7 days\"")
            }
            Err(error) => Err(error),
        }
    }

    /// How long a server is tried at most.
    fn trial(&self) -> Duration {
        self.timeouts.connect + self.timeouts.fetch
    }

    /// Begins a transaction, which ends when this is dropped.
    pub async fn begin(&self) -> Result<(), ServersError> {
        let milliseconds = |time: Duration| time.as_millis().to_string();
        // So that the server gives up first, and says for what.
        let (idle, lock) = (milliseconds(self.trial() + SPARE), milliseconds(self.timeouts.query * 3 / 4));
        let statement = include_str!("../../../sql/repository/begin_change.sql");
        self.ask(async {
            self.client.batch_execute("BEGIN").await?;
            self.client.query_one(statement, &[&idle, &lock]).await
        })
        .await?;
        Ok(())
    }

    pub async fn roll_back(&self) -> Result<(), ServersError> {
        self.ask(self.client.batch_execute("ROLLBACK")).await
    }

    /// Ends the transaction, and lets a collector at work read the servers again. Gives what to say of that.
    pub async fn commit(&self) -> Result<String, ServersError> {
        match self.ask(self.client.batch_execute("COMMIT")).await {
            Ok(()) => Ok(self.tell().await),
            Err(ServersError::Deadline(_)) => Err(ServersError::InDoubt),
            Err(ServersError::Connection(error)) if ends_connection(&error) => Err(ServersError::InDoubt),
            Err(error) => Err(error),
        }
    }

    /// Waits for the answer: who has gone before the collector has looked at its rights has none.
    async fn tell(&self) -> String {
        let telling = async { Channel::open(&self.configuration).await?.ask("RELOAD", "").await };
        match telling.await {
            Ok(_) => "the collector at work has taken it over".to_owned(),
            Err(ClientError::NoCollector(place)) => {
                format!("no collector is connected to {place}: one takes it over when it starts")
            }
            Err(error) => {
                format!(
                    "a collector at work takes it over when it reads the servers again, since now {error}"
                )
            }
        }
    }

    /// Has extensions read from a server.
    pub async fn activate(&self, id: ServerId, extensions: &[String]) -> Result<(), ServersError> {
        let statement = self.sql(include_str!("../../../sql/repository/activate_extension.sql"));
        for name in extensions.iter().filter(|name| !ALWAYS_ACTIVE.contains(&name.as_str())) {
            let row = self.ask(self.client.query_one(&statement, &[&id.0, name])).await?;
            if row.get::<_, Option<bool>>(0) != Some(true) {
                let (name, version) = (name.clone(), self.about.powa.version.clone());
                return Err(ServersError::Extension { name, version });
            }
        }
        Ok(())
    }

    /// Deletes a server and its history.
    pub async fn purge(&self, id: ServerId) -> Result<(), ServersError> {
        let lock = self.sql(include_str!("../../../sql/repository/lock_snapshots.sql"));
        self.ask(self.client.query_opt(&lock, &[&id.0])).await?;
        // What it gives does not matter: in PoWA 4 it is whether there is pg_track_settings.
        let purge = self.sql("SELECT {powa}.powa_delete_and_purge_server($1)");
        self.within(self.timeouts.store, self.client.query_one(&purge, &[&id.0])).await?;
        Ok(())
    }

    /// What is read from a server, as its registration is in this transaction.
    pub async fn plan(&self, id: ServerId, version_num: i32) -> Result<Plan, ServersError> {
        self.ask(self.client.batch_execute("SAVEPOINT plan")).await?;
        let planning = plan::plan(&self.client, self.about.clone(), id, version_num);
        let plan = timeout(self.timeouts.query, planning).await;
        let plan = plan.map_err(|_| ServersError::Deadline(self.timeouts.query))?;
        // Also when the question has failed, which must not end what the transaction is for.
        self.ask(self.client.batch_execute("ROLLBACK TO SAVEPOINT plan")).await?;
        Ok(plan?)
    }

    /// Tries a server as the collector would, and says what is missing: with the SQL that mends it on standard output,
    /// all else on standard error. True when nothing is.
    pub async fn try_out(
        &self,
        server: Server,
        plan: impl AsyncFn(i32) -> Result<Plan, ServersError>,
    ) -> Result<bool, ServersError> {
        let (role, database) = (server.username.clone(), server.dbname.clone());
        let assignment = self.means.assignment(server);
        let mut findings = Findings::of(&format!("server {}", assignment.name));
        let planning = async |version: i32| plan(version).await.map_err(|error| error.to_string());
        let trial = self.trial();
        if timeout(trial, one_server::check(&assignment, planning, &mut findings)).await.is_err() {
            findings.problem(&format!("not done within {} s", trial.as_secs()), &[]);
        }
        if findings.is_good() {
            eprint!("{}", findings.notes());
            return Ok(true);
        }
        eprint!("{}", findings.text_without_sql());
        let mut extensions = Vec::new();
        if findings.has_unseen() {
            // Which extensions are read does not depend on the server's version, which may be unknown.
            if let Ok(plan) = plan(i32::MAX).await {
                extensions
                    .extend(plan.datasources.iter().filter_map(|datasource| datasource.extension.clone()));
            }
            extensions.sort();
            extensions.dedup();
        }
        let needs_powa = !self.about.powa.version.is_5();
        let setup = Setup { role: &role, database: &database, needs_powa, extensions: &extensions };
        if let Some(script) = setup.script(&findings) {
            super::hand_out(&script)?;
        }
        Ok(false)
    }
}
