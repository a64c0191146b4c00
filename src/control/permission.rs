//! Who may steer the collector: the role behind the session that sent the message must hold one of the roles
//! that PoWA names for it.

use tokio_postgres::{Client, Error};

use crate::postgres::extension::{Powa, in_schema};

/// Whether the backend with this process id belongs to somebody who may. A backend that is gone can no longer
/// be asked who it was: no.
///
/// # Errors
/// Those of the connection.
pub async fn is_allowed(client: &Client, powa: &Powa, backend: i32) -> Result<bool, Error> {
    let statement = if powa.version.is_5() {
        include_str!("../../sql/repository/permission_powa5.sql")
    } else {
        include_str!("../../sql/repository/permission_powa4.sql")
    };
    let row = client.query_one(&in_schema(statement, &powa.schema), &[&backend]).await?;
    Ok(row.get(0))
}
