"""How the work is spread over devices: the mesh, and the rules by which arrays are partitioned."""
