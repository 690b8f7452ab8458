# Consul's own tuning, the user's to change. convene adds only what it computes.

# Elections after 1 to 2 s instead of 5 to 10: the default is for machines much smaller than a Pod.
performance {
  raft_multiplier  = 1
  # A leave waits this long for requests under way; 5 s by default, and nothing that lasts is asked of a server directly.
  leave_drain_time = "1s"
  # A request that comes without a leader is tried again after at most a 16th of this, then twice as long each time: of 7 s, the
  # default for elections of 5 to 10 s, a write waits up to 0.9 s when leadership is handed over.
  rpc_hold_timeout = "3s"
}

# No federation over a WAN pool; it would add 4.5 s to every leave.
ports {
  serf_wan = -1
}

# The other servers and the probes must be able to ask.
client_addr = "0.0.0.0"

# A cluster that slept for longer than a week starts again (Consul's default is 168h).
server_rejoin_age_max = "8760h"

# Asks nobody outside.
disable_update_check = true
