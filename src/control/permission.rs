//! Who may steer the collector: the role behind the session that sent the message must hold one of the roles
//! that PoWA names for it, or be the collector's own, which has no need to be told that it may do what it does.

use tokio::sync::OnceCell;
use tokio_postgres::{Client, Error, Statement};

use crate::postgres::extension::{Powa, in_schema};

/// The question that is asked of a session's role.
pub struct Permission {
    question: String,
    /// Each message waits for the answer: it is prepared once.
    prepared: OnceCell<Statement>,
}

impl Permission {
    pub fn new(powa: &Powa) -> Self {
        let question = if powa.version.is_5() {
            include_str!("../../sql/repository/permission_powa5.sql")
        } else {
            include_str!("../../sql/repository/permission_powa4.sql")
        };
        Self { question: in_schema(question, &powa.schema), prepared: OnceCell::new() }
    }

    /// Whether the backend with this process id belongs to somebody who may. A backend that is gone can no longer
    /// be asked who it was: no. `client`: always the same.
    ///
    /// # Errors
    /// Those of the connection.
    pub async fn is_held_by(&self, client: &Client, backend: i32) -> Result<bool, Error> {
        let statement = self.prepared.get_or_try_init(|| client.prepare(&self.question)).await?;
        let row = client.query_one(statement, &[&backend]).await?;
        Ok(row.get(0))
    }
}
