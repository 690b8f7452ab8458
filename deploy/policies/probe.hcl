# The token of `convene check` where it is called with one of its own: an app's gate, a probe, a person. It changes nothing.
# `convene discover` needs no token at all.
#
#   consul acl policy create -name convene-probe -rules @probe.hcl

# ready, live: GET /v1/agent/self (whether it has left; in touch with the leader, caught up, a voter).
agent_prefix "" {
  policy = "read"
}

# ready: GET /v1/operator/raft/configuration (a voter, as the leader sees it).
operator = "read"

# joined: GET /v1/agent/members (whether a server is alive).
node_prefix "" {
  policy = "read"
}
