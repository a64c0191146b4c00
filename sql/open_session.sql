-- what this server is, and the settings of a session
--
-- Rows travel as text from one server to another: both ends must write and read dates, numbers and bytes
-- the same way, whatever their own settings are.
SELECT
    pg_catalog.current_setting('server_version') AS version,
    pg_catalog.current_setting('server_version_num')::pg_catalog.int4 AS version_num,
    pg_catalog.current_setting('server_encoding') AS encoding,
    pg_catalog.pg_is_in_recovery() AS is_standby,
    pg_catalog.current_setting('default_transaction_read_only')::pg_catalog.bool AS is_read_only,
    powa.version AS powa_version,
    powa.schema AS powa_schema,
    -- as inherited, unless that is to wait for ever
    pg_catalog.set_config('lock_timeout',
        CASE WHEN pg_catalog.current_setting('lock_timeout') = '0' THEN '2000'
             ELSE pg_catalog.current_setting('lock_timeout') END, false),
    -- PoWA 4 finds other extensions by the search path; from PoWA 5 on every name is qualified
    pg_catalog.set_config('search_path',
        CASE WHEN pg_catalog.split_part(powa.version, '.', 1) IN ('1', '2', '3', '4')
             THEN pg_catalog.current_setting('search_path')
             ELSE 'pg_catalog' END, false),
    -- so that a query ends when we have gone; not every system that PostgreSQL runs on can tell
    CASE WHEN pg_catalog.current_setting('client_connection_check_interval', true) = '0'
            AND pg_catalog.version() LIKE '%linux%'
        THEN pg_catalog.set_config('client_connection_check_interval', '1000', false) END,
    -- so that a transaction of ours ends, with its locks, also when the network has swallowed our farewell
    CASE WHEN pg_catalog.current_setting('idle_in_transaction_session_timeout') = '0'
        THEN pg_catalog.set_config('idle_in_transaction_session_timeout', '60000', false) END,
    pg_catalog.set_config('tcp_keepalives_idle', '60', false),
    pg_catalog.set_config('tcp_keepalives_interval', '10', false),
    pg_catalog.set_config('tcp_keepalives_count', '3', false),
    pg_catalog.set_config('datestyle', 'ISO, YMD', false),
    pg_catalog.set_config('intervalstyle', 'postgres', false),
    pg_catalog.set_config('extra_float_digits', '3', false),
    pg_catalog.set_config('bytea_output', 'hex', false)
FROM (SELECT) AS one
LEFT JOIN (
    SELECT e.extversion AS version, n.nspname::pg_catalog.text AS schema
    FROM pg_catalog.pg_extension AS e
    JOIN pg_catalog.pg_namespace AS n ON n.oid = e.extnamespace
    WHERE e.extname = 'powa'
) AS powa ON true
