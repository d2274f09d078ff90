"""Studies: settings of training that are compared with several seeds."""
