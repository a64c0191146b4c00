-- The PoWA repository: the extension, the roles of its clients, and the servers to monitor.

\getenv collector_password COLLECTOR_PASSWORD
\getenv web_password WEB_PASSWORD
\getenv server_password SERVER_PASSWORD
\getenv servers SERVERS

CREATE DATABASE powa;
\connect powa
REVOKE ALL ON DATABASE powa FROM PUBLIC;

CREATE EXTENSION powa CASCADE;
-- Its history is kept by the extension itself, in tables of its own; every other source's history is kept by PoWA.
CREATE EXTENSION pg_track_settings;

-- The collector: takes snapshots, and keeps the versions it finds on the servers.
CREATE ROLE powa_collector LOGIN PASSWORD :'collector_password' IN ROLE powa_snapshot;
GRANT CONNECT ON DATABASE powa TO powa_collector;
GRANT UPDATE (version) ON powa_servers TO powa_collector;
GRANT INSERT, UPDATE, DELETE ON powa_extension_config TO powa_collector;
GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON
    pg_track_settings_settings_src_tmp, pg_track_settings_list, pg_track_settings_history,
    pg_track_settings_rds_src_tmp, pg_track_db_role_settings_list, pg_track_db_role_settings_history,
    pg_track_settings_reboot_src_tmp, pg_reboot
    TO powa_collector;

-- powa-web: reads the history, sees the collector's sessions, and may ask it for a snapshot or a reload.
CREATE ROLE powa_web LOGIN PASSWORD :'web_password' IN ROLE powa_read_all_data, powa_signal_backend, pg_read_all_stats;
GRANT CONNECT ON DATABASE powa TO powa_web;
GRANT SELECT ON
    pg_track_settings_list, pg_track_settings_history, pg_track_db_role_settings_list,
    pg_track_db_role_settings_history, pg_reboot
    TO powa_web;

-- hypopg is not named: the collector finds out by itself where it is installed.
SELECT powa_register_server(
        hostname => name,
        alias => name,
        username => 'powa_monitor',
        password => :'server_password',
        frequency => 5,
        retention => '1 day',
        extensions => '{pg_stat_kcache,pg_qualstats,pg_wait_sampling,pg_track_settings}')
FROM string_to_table(:'servers', ' ') AS name;
