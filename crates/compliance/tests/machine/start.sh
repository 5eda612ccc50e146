#!/bin/sh
# Starts the agent on a machine that a test has prepared. Reached through a link in the test's directory, which has the
# agent as `program` and, as `prepare`, what is to be done before: in mount and host name namespaces of its own.
machine=$(dirname "$0")
export machine
exec unshare --mount --uts -- /bin/sh -ec '. "$machine/prepare"; exec "$machine/program" "$@"' sh "$@"
