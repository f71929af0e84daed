#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The node agent where there is no service manager (an appliance's own init, a test): start it before kubelet, in the background.
# It begins again when it ends, at once: pods that kubelet admits meanwhile fail for good. SIGTERM to this script ends both.
set -eu
. "${HAMI_AGENT_ENV:-/etc/hami/agent.env}"
export NODE_NAME PYTHONOPTIMIZE=2 MALLOC_ARENA_MAX=1
child=
trap 'trap - TERM INT; [ -z "$child" ] || kill "$child" 2>/dev/null; wait; exit 0' TERM INT
while :; do
    # shellcheck disable=SC2086 # options are words
    "${HAMI:-/opt/hami/bin/hami}" agent $HAMI_AGENT_OPTIONS &
    child=$!
    status=0
    wait "$child" || status=$?
    [ "$status" -ne 2 ] || { echo "hami agent: wrong settings; not started again" >&2; exit 2; }
    sleep 0.1
done
