-- The collector's role in a PoWA 4 repository.
--
-- Run in the repository's database, as superuser, once the extensions powa, pg_stat_kcache, pg_qualstats and so
-- on are there (PoWA 4 makes tables for an extension when it is created):
--     psql -d powa -f repository_powa4.sql
-- then give the role a password (\password powa_collector) and a line in pg_hba.conf.

BEGIN;

CREATE ROLE powa_collector LOGIN;
-- PoWA 4 is always in the schema public, and it knows no roles of its own.
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO powa_collector;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO powa_collector;

COMMIT;
