-- begin a snapshot's transaction: its time, what the server is now, a limit to what each statement may take, and a
-- point to come back to after each datasource
BEGIN;
SELECT
    pg_catalog.to_char(pg_catalog.now() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00',
    pg_catalog.pg_is_in_recovery(),
    pg_catalog.current_setting('default_transaction_read_only')::pg_catalog.bool,
    -- as inherited, unless that is longer; zero is for ever
    CASE WHEN statement.seconds > 0::pg_catalog.numeric AND statement.seconds < {seconds}::pg_catalog.numeric THEN NULL
         ELSE pg_catalog.set_config('statement_timeout', '{seconds}s', true) END,
    -- a server that does not know what its bytes mean refuses those that are no UTF-8, unless nobody asks for that
    CASE WHEN pg_catalog.current_setting('server_encoding') = 'SQL_ASCII'
         THEN pg_catalog.set_config('client_encoding', 'SQL_ASCII', true) END
FROM (
    SELECT EXTRACT(epoch FROM pg_catalog.current_setting('statement_timeout')::pg_catalog.interval)::pg_catalog.numeric
        AS seconds
) AS statement;
SAVEPOINT datasource
