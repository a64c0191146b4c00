//! A client of the control channel, as psql or powa-web is one.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio_postgres::{AsyncMessage, Client, NoTls};

pub use tokio_postgres::Notification;

use super::cluster::Cluster;

/// How long an answer may take. powa-web waits one to three seconds; the machine that runs the tests may be a
/// slow one.
const ANSWER: Duration = Duration::from_secs(10);

/// A session that listens on a channel of its own.
pub struct Control {
    client: Client,
    notifications: UnboundedReceiver<Notification>,
    channel: String,
}

impl Control {
    /// As the superuser.
    pub async fn connect(cluster: &Cluster, dbname: &str) -> Control {
        Control::connect_as(cluster, "postgres", dbname).await
    }

    pub async fn connect_as(cluster: &Cluster, user: &str, dbname: &str) -> Control {
        let config = cluster.config(user, dbname);
        let (client, mut connection) = config.connect(NoTls).await.expect("connect to the repository");
        let (sender, notifications) = unbounded_channel();
        tokio::spawn(async move {
            let mut messages = stream::poll_fn(|context| connection.poll_message(context));
            while let Some(Ok(message)) = messages.next().await {
                if let AsyncMessage::Notification(notification) = message {
                    sender.send(notification).ok();
                }
            }
        });
        let channel = format!("r{}", rand::random::<u32>());
        client.batch_execute(&format!("LISTEN {channel}")).await.expect("listen for answers");
        Control { client, notifications, channel }
    }

    /// The channel on which this client waits for answers.
    pub fn channel(&self) -> &str {
        &self.channel
    }

    /// The session, for statements between the commands.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// `NOTIFY powa_collector, 'COMMAND CHANNEL ARGUMENTS'`, with the channel of this client.
    pub async fn send(&self, command: &str, arguments: &str) {
        let payload = format!("{command} {} {arguments}", self.channel);
        self.notify_raw(payload.trim_end()).await;
    }

    /// `NOTIFY powa_collector` with exactly this payload.
    pub async fn notify_raw(&self, payload: &str) {
        self.client
            .execute("SELECT pg_notify('powa_collector', $1)", &[&payload])
            .await
            .expect("notify the collector");
    }

    /// Sends a command, and returns the next answer; panics when there is none within 10 s.
    pub async fn ask(&mut self, command: &str, arguments: &str) -> String {
        self.send(command, arguments).await;
        match self.next(ANSWER).await {
            Some(notification) => notification.payload().to_owned(),
            None => panic!("no answer to {command} {arguments} within {ANSWER:?}"),
        }
    }

    /// The next notification on this client's channel; none when `deadline` passes.
    pub async fn next(&mut self, deadline: Duration) -> Option<Notification> {
        tokio::time::timeout(deadline, self.notifications.recv()).await.ok().flatten()
    }

    /// What has been received and not yet taken.
    pub fn received(&mut self) -> Vec<Notification> {
        std::iter::from_fn(|| self.notifications.try_recv().ok()).collect()
    }
}
