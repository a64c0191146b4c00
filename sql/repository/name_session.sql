-- name a session, and tell whether it takes changes and which repository it is with
SELECT
    pg_catalog.set_config('application_name', $1, false),
    pg_catalog.current_setting('transaction_read_only')::pg_catalog.bool AS is_read_only,
    s.system_identifier::pg_catalog.text OPERATOR(pg_catalog.||) '/' OPERATOR(pg_catalog.||)
        pg_catalog.current_database()::pg_catalog.text AS repository
FROM pg_catalog.pg_control_system() AS s
