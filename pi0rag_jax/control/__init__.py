"""One control loop for every robot: simulated, on ROS, or behind a vendor's driver."""
