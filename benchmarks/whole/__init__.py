"""What whole models take and give whose tables are compact and whose linear layers are stored small."""
