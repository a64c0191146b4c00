-- A monitored server: the powa database, the collector's role, and a database for the workload.

\getenv server_password SERVER_PASSWORD
\getenv workload_password WORKLOAD_PASSWORD

CREATE DATABASE powa;
\connect powa
CREATE EXTENSION powa CASCADE;
CREATE EXTENSION pg_qualstats;
CREATE EXTENSION pg_stat_kcache;
CREATE EXTENSION pg_track_settings;
CREATE EXTENSION pg_wait_sampling;
CREATE EXTENSION hypopg;

-- The collector reads statistics (pg_monitor) and empties pg_qualstats after each snapshot. powa-web uses the same role to
-- show plans and to try indexes, which needs the right to read the tables.
CREATE ROLE powa_monitor LOGIN PASSWORD :'server_password' IN ROLE pg_monitor, pg_read_all_data;
GRANT EXECUTE ON FUNCTION pg_qualstats_reset() TO powa_monitor;

CREATE ROLE workload LOGIN PASSWORD :'workload_password';
CREATE DATABASE shop OWNER workload;
\connect shop
CREATE EXTENSION hypopg;
