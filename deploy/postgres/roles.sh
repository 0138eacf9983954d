#!/usr/bin/env bash
# Run once by the Postgres image on an empty data folder: a role and a schema per owning service.
# The passwords lie in files that the init service wrote.
set -euo pipefail
for role in scheduler billing hub; do
  # By the environment: arguments can be read by every process.
  ROLE_PASSWORD="$(cat "/run/tunesmith/${role}.password")"
  export ROLE_PASSWORD
  psql --set=ON_ERROR_STOP=1 --set=role="${role}" \
    --username "${POSTGRES_USER}" --dbname "${POSTGRES_DB}" <<'SQL'
\getenv password ROLE_PASSWORD
CREATE ROLE :"role" LOGIN PASSWORD :'password';
CREATE SCHEMA :"role" AUTHORIZATION :"role";
ALTER ROLE :"role" SET search_path = :"role";
REVOKE ALL ON SCHEMA public FROM PUBLIC;
SELECT format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database()) \gexec
SELECT format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), :'role') \gexec
SQL
done
