struct task_struct;
