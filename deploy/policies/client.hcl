# The token of the clients: Consul's agent (acl.tokens.agent) and convene beside it (CONSUL_HTTP_TOKEN_FILE of `run`, `init`, `watch`
# and `leave`) use the same one. Clients are named after machines and Pods, so it may speak for every node but the servers; where that
# is too much, give each its own token with a node identity (`consul acl token create -node-identity=NAME:DATACENTER`) and
# agent "NAME" { policy = "write" }. What an app registers needs a token of its own.
#
#   consul acl policy create -name convene-client -rules @client.hcl

# convene: PUT /v1/agent/join (servers that moved), PUT /v1/agent/leave (the end), GET /v1/agent/self (whether it has left).
agent_prefix "" {
  policy = "write"
}
agent_prefix "consul-server-" {
  policy = "deny"
}

# Consul's agent: it registers itself in the catalog, and keeps that in sync.
# convene: GET /v1/agent/members (whether a server is alive, and whether a server knows of our leave).
node_prefix "" {
  policy = "write"
}
node_prefix "consul-server-" {
  policy = "read"
}

# Consul's agent: it compares the services that it has with those in the catalog, and would write them anew every minute without
# (tried on 1.22.6). At a server nothing is registered, so its policy lacks this.
service_prefix "" {
  policy = "read"
}
