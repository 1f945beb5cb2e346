"""What every run shares: how it is told what to do, what it leaves behind, and how it goes on after a stop."""
