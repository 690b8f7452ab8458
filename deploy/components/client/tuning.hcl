# Consul's own tuning of the clients, the user's to change. convene adds only what it computes.

# Asks nobody outside.
disable_update_check = true
