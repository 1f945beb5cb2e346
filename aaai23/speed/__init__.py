"""What makes the networks fast and is no part of them. Importing this package loads no torch; `process` needs none."""
