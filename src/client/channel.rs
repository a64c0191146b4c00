//! One client of the control channel: sends a command, and waits for its answer on a channel of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_postgres::Notification;

use super::{ClientError, SESSION, find};
use crate::config::Configuration;
use crate::control::listener::SESSION_PREFIX;
use crate::control::protocol::{CHANNEL, DetailPart};
use crate::postgres::session::Session;
use crate::report::Detail;
use crate::server::{self, ServerId};

/// How long an answer is waited for before a question that changes nothing is asked again.
const PATIENCE: Duration = Duration::from_secs(2);

pub struct Channel {
    session: Session,
    schema: String,
    notifications: UnboundedReceiver<Notification>,
    /// Where answers come.
    name: String,
    /// For one question to the repository.
    query: Duration,
    /// For an answer of the collector, which may itself have to ask the repository.
    answer: Duration,
    /// What the repository is, in words.
    place: String,
}

impl Channel {
    pub async fn open(configuration: &Configuration) -> Result<Self, ClientError> {
        let (conninfo, timeouts) = (&configuration.repository, configuration.settings.timeouts);
        let (sender, notifications) = unbounded_channel();
        let session = Session::open_listening(conninfo, SESSION, timeouts.connect, sender).await?;
        let place = conninfo.describe();
        let Some(powa) = session.facts.powa.clone() else { return Err(ClientError::NoPowa(place)) };
        if !powa.version.is_supported() {
            return Err(ClientError::Unsupported(powa.version));
        }
        let name = format!("powa_collector_{:016x}", rand::random::<u64>());
        let channel = Self {
            session,
            schema: powa.schema,
            notifications,
            name,
            query: timeouts.query,
            answer: 2 * timeouts.query,
            place,
        };
        channel.within(channel.session.client.batch_execute(&format!("LISTEN {}", channel.name))).await?;
        Ok(channel)
    }

    /// The servers that are meant by these names; none by no names.
    pub async fn servers(&self, names: &[String]) -> Result<Vec<ServerId>, ClientError> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let known = self.within(server::names(&self.session.client, &self.schema)).await?;
        names.iter().map(|name| find(name, &known)).collect()
    }

    /// Sends a command. Gives what the collector says to it.
    pub async fn ask(&mut self, command: &str, arguments: &str) -> Result<String, ClientError> {
        self.send(command, arguments).await?;
        let deadline = Instant::now() + self.answer;
        let (_, data) = self.next(command, None, deadline).await?;
        Ok(data)
    }

    /// How the collection of these servers goes, or of all.
    pub async fn details(&mut self, of: &[ServerId]) -> Result<Vec<Detail>, ClientError> {
        let command = "WORKERS_DETAIL";
        let words: Vec<String> = of.iter().map(ServerId::to_string).collect();
        let words = words.join(" ");
        self.send(command, &words).await?;
        let deadline = Instant::now() + self.answer;
        let (mut from, mut parts, mut count) = (None, BTreeMap::new(), 1);
        while parts.len() < count {
            let (backend, data) =
                match self.next(command, from, deadline.min(Instant::now() + PATIENCE)).await {
                    // A collector that has just connected may not have listened yet. To ask again changes nothing.
                    Err(ClientError::NoAnswer(_)) if from.is_none() && Instant::now() < deadline => {
                        self.send(command, &words).await?;
                        continue;
                    }
                    Err(ClientError::NoAnswer(_)) if Instant::now() < deadline => continue,
                    answer => answer?,
                };
            let part: DetailPart =
                serde_json::from_str(&data).map_err(|error| ClientError::Malformed(error.to_string()))?;
            if part.parts != count {
                parts.clear();
            }
            (from, count) = (Some(backend), part.parts);
            parts.insert(part.part, part.servers);
        }
        Ok(parts.into_values().flatten().collect())
    }

    async fn send(&mut self, command: &str, arguments: &str) -> Result<(), ClientError> {
        // Answers to what was given up are not answers to this.
        while self.notifications.try_recv().is_ok() {}
        let client = &self.session.client;
        let there = format!(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_stat_activity WHERE datname = pg_catalog.current_database() \
             AND application_name LIKE '{SESSION_PREFIX}%')"
        );
        let payload = format!("{command} {} {arguments}", self.name);
        let sending = async {
            let is_there: bool = client.query_typed_one(&there, &[]).await?.get(0);
            if is_there {
                let notify = "SELECT pg_catalog.pg_notify($1, $2)";
                client.execute(notify, &[&CHANNEL, &payload.trim_end()]).await?;
            }
            Ok(is_there)
        };
        if self.within(sending).await? { Ok(()) } else { Err(ClientError::NoCollector(self.place.clone())) }
    }

    /// The next answer to a command, of this backend or of any. Gives the backend that it came from, and the data.
    async fn next(
        &mut self,
        command: &str,
        from: Option<i32>,
        deadline: Instant,
    ) -> Result<(i32, String), ClientError> {
        loop {
            let Ok(received) = timeout_at(deadline, self.notifications.recv()).await else {
                return Err(ClientError::NoAnswer(self.answer));
            };
            let Some(received) = received else { return Err(ClientError::Lost) };
            let backend = received.process_id();
            if from.is_some_and(|from| from != backend) {
                continue;
            }
            let mut words = received.payload().splitn(3, ' ');
            if words.next() != Some(command) {
                continue;
            }
            let (status, data) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            return match status {
                "OK" => Ok((backend, data.to_owned())),
                "UNKNOWN" => Err(ClientError::Unknown(command.to_owned())),
                "ERROR" => Err(ClientError::Refused(data.to_owned())),
                _ => Err(ClientError::Malformed(received.payload().to_owned())),
            };
        }
    }

    async fn within<T>(
        &self,
        asking: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, ClientError> {
        match timeout(self.query, asking).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(ClientError::Deadline(self.query)),
        }
    }
}
