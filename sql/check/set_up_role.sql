-- a role and a database for the collector, where they are missing (psql)
SELECT pg_catalog.format('CREATE ROLE %I LOGIN', :'role')
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.rolname = :'role')
\gexec
SELECT pg_catalog.format('ALTER ROLE %I LOGIN', :'role')
WHERE EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.rolname = :'role' AND NOT r.rolcanlogin)
\gexec
SELECT pg_catalog.format('CREATE DATABASE %I', :'database')
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_database AS d WHERE d.datname = :'database')
\gexec
GRANT CONNECT ON DATABASE :"database" TO :"role";
