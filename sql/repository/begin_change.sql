-- what holds until the end of a transaction that changes servers: how long it may idle while a server is tried, and how
-- long it waits for a lock ($1 and $2, in milliseconds); and the server's log shows none of its parameters, one of which
-- is a password, as far as the role may say so
SELECT
    pg_catalog.set_config('idle_in_transaction_session_timeout', $1, true),
    pg_catalog.set_config('lock_timeout', $2, true),
    CASE WHEN pg_catalog.current_setting('log_parameter_max_length_on_error', true) IS NOT NULL
        THEN pg_catalog.set_config('log_parameter_max_length_on_error', '0', true) END,
    CASE WHEN pg_catalog.current_setting('is_superuser') = 'on'
            AND pg_catalog.current_setting('log_parameter_max_length', true) IS NOT NULL
        THEN pg_catalog.set_config('log_parameter_max_length', '0', true) END
