-- name a session, and tell whether it takes changes
SELECT
    pg_catalog.set_config('application_name', $1, false),
    pg_catalog.current_setting('transaction_read_only')::pg_catalog.bool AS is_read_only
