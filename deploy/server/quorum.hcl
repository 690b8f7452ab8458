# A server that is away stays a voter, so that a restart changes no membership: the number of servers. The first value of a
# new cluster only: later it is changed with `consul operator autopilot set-config -min-quorum=3`.
autopilot {
  min_quorum = 3
}
