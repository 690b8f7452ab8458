# The token of a server: Consul's agent (acl.tokens.agent) and convene beside it (CONSUL_HTTP_TOKEN_FILE of `run`, `init`, `watch`
# and `leave`) use the same one. "consul-server-" is the StatefulSet's name: a Pod's name is its node's.
#
#   consul acl policy create -name convene-server -rules @server.hcl

# convene: PUT /v1/agent/leave (a leave), PUT /v1/agent/join (a server that is found late), PUT /v1/agent/reload (the first election),
# GET /v1/agent/self (who votes). Before it is in a cluster a server knows no token: then its own acl.tokens.agent_recovery would do,
# and Consul's own retry, and raft's own timer, need none.
agent_prefix "consul-server-" {
  policy = "write"
}

# convene: PUT /v1/agent/force-leave and DELETE /v1/operator/raft/peer (a server that lost its disk has its predecessor removed;
# others are told of a leave that gossip does not carry), POST /v1/operator/raft/transfer-leader (a leader that stops),
# GET /v1/operator/raft/configuration and /v1/operator/autopilot/state (who votes, and who is caught up).
operator = "write"

# Consul's agent: it registers itself in the catalog, and keeps that in sync.
# convene: GET /v1/agent/members (which servers are alive, and which Pod is at which address).
node_prefix "consul-server-" {
  policy = "write"
}
