"""What every room uses: errors with a remedy, whole files, progress, memory."""
