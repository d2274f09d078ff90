"""Distributes the work over devices: the mesh, the rules by which arrays are sharded, and several processes."""
